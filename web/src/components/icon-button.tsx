import type { ComponentProps } from "react";
import { Button } from "./button";
import { Tooltip } from "./tooltip";

/** A button that shows an icon and says its name to screen readers and on hover. */
export function IconButton({ label, ...rest }: { label: string } & ComponentProps<typeof Button>) {
  return (
    <Tooltip text={label}>
      <Button look="ghost" size="icon" aria-label={label} {...rest} />
    </Tooltip>
  );
}
