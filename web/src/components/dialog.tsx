import { X } from "lucide-react";
import { Dialog as Radix } from "radix-ui";
import type { ReactNode } from "react";
import { IconButton } from "./icon-button";

interface DialogProps {
  title: string;
  text: ReactNode;
  isOpen: boolean;
  onClose: () => void;
  children: ReactNode;
}

/** A form over the page. */
export function Dialog({ title, text, isOpen, onClose, children }: DialogProps) {
  return (
    <Radix.Root
      open={isOpen}
      onOpenChange={(open) => {
        if (!open) onClose();
      }}
    >
      <Radix.Portal>
        <Radix.Overlay className="fixed inset-0 z-40 animate-fade-in bg-black/35" />
        <Radix.Content className="fixed inset-x-4 top-1/2 z-50 mx-auto max-h-[calc(100dvh-2rem)] max-w-lg -translate-y-1/2 animate-fade-in overflow-y-auto rounded-2xl border bg-surface p-5 shadow-float">
          <Radix.Title className="pr-8 font-semibold">{title}</Radix.Title>
          <Radix.Description className="mt-1 text-[0.8125rem] text-ink-soft">{text}</Radix.Description>
          {children}
          {/* Last, so that the form's first field has the focus when it opens. */}
          <Radix.Close asChild>
            <IconButton label="Close" size="icon-sm" className="absolute top-4 right-4">
              <X aria-hidden />
            </IconButton>
          </Radix.Close>
        </Radix.Content>
      </Radix.Portal>
    </Radix.Root>
  );
}
