import { Check, Copy } from "lucide-react";
import { useEffect, useState } from "react";
import { IconButton } from "./icon-button";
import { toastError } from "./toast";

/** Copies text. The clipboard is missing where the page came over plain HTTP from another machine. */
export function CopyButton({ text, label, className }: { text: string; label: string; className?: string }) {
  const [copied, setCopied] = useState(false);
  useEffect(() => {
    if (!copied) return;
    const timer = setTimeout(() => {
      setCopied(false);
    }, 1500);
    return () => {
      clearTimeout(timer);
    };
  }, [copied]);
  const copy = (): void => {
    const clipboard = (navigator as { clipboard?: Clipboard }).clipboard;
    if (!clipboard) {
      toastError("This page cannot reach the clipboard", "Open it over HTTPS or on localhost.");
      return;
    }
    clipboard.writeText(text).then(
      () => {
        setCopied(true);
      },
      () => {
        toastError("The browser refused to copy");
      },
    );
  };
  return (
    <IconButton label={copied ? "Copied" : label} size="icon-sm" onClick={copy} className={className}>
      {copied ? <Check aria-hidden /> : <Copy aria-hidden />}
    </IconButton>
  );
}
