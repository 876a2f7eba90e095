import { cva, type VariantProps } from "class-variance-authority";
import { Slot } from "radix-ui";
import type { ComponentProps } from "react";
import { cn } from "@/lib/cn";
import { Spinner } from "./spinner";

const button = cva(
  "inline-flex shrink-0 select-none items-center justify-center gap-1.5 whitespace-nowrap rounded-lg font-medium transition-[background,border-color,color,opacity] duration-100 disabled:pointer-events-none disabled:opacity-45 [&_svg]:size-4 [&_svg]:shrink-0",
  {
    variants: {
      look: {
        primary: "bg-ink text-canvas hover:bg-ink/85 shadow-raised",
        outline: "border border-line bg-surface text-ink hover:bg-hover hover:border-line-strong shadow-raised",
        ghost: "text-ink-soft hover:bg-hover hover:text-ink",
        danger: "border border-bad/30 bg-bad-soft text-bad hover:border-bad/60",
        accent: "bg-accent text-canvas hover:bg-accent/90 shadow-raised dark:text-canvas",
      },
      size: {
        sm: "h-7 px-2.5 text-xs [&_svg]:size-3.5",
        md: "h-8 px-3 text-[0.8125rem]",
        lg: "h-10 px-4 text-sm",
        icon: "size-8",
        "icon-sm": "size-7 [&_svg]:size-3.5",
      },
    },
    defaultVariants: { look: "outline", size: "md" },
  },
);

interface ButtonProps extends ComponentProps<"button">, VariantProps<typeof button> {
  asChild?: boolean;
  /** Shows a spinner and refuses clicks. */
  busy?: boolean;
}

export function Button({ className, look, size, asChild, busy, children, disabled, ...rest }: ButtonProps) {
  if (asChild) {
    return (
      <Slot.Root className={cn(button({ look, size }), className)} {...rest}>
        {children}
      </Slot.Root>
    );
  }
  return (
    <button
      type="button"
      className={cn(button({ look, size }), className)}
      disabled={disabled === true || busy === true}
      aria-busy={busy}
      {...rest}
    >
      {busy && <Spinner />}
      {children}
    </button>
  );
}
