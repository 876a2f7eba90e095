import { KeyRound } from "lucide-react";
import { Logo } from "@/components/logo";
import { Notice } from "@/components/notice";
import { Button } from "@/components/button";

/** The server does not know this browser. */
export function SignIn() {
  return (
    <main className="grid min-h-full place-items-center px-4">
      <title>Sign in · Ship</title>
      <div className="w-full max-w-md rounded-2xl border bg-surface shadow-raised">
        <Notice
          isPage
          icon={KeyRound}
          title="Sign in with a link"
          className="py-10"
          action={
            <Button
              look="primary"
              onClick={() => {
                window.location.reload();
              }}
            >
              I have signed in
            </Button>
          }
        >
          <p>
            This browser is not signed in, or its sign-in has run out. Open the link that <Command>ship up</Command>{" "}
            printed in its terminal, or ask for a new one:
          </p>
          <pre className="mt-4 rounded-lg border bg-sunken px-3 py-2 text-left font-mono text-code text-ink">
            <span aria-hidden className="select-none text-ink-faint">
              ${" "}
            </span>
            ship login-link
          </pre>
        </Notice>
        <p className="flex items-center justify-center gap-1.5 border-t py-3 text-xs text-ink-faint">
          <Logo className="size-4" /> Ship
        </p>
      </div>
    </main>
  );
}

function Command({ children }: { children: string }) {
  return <code className="rounded border bg-sunken px-1 py-px font-mono text-xs text-ink-soft">{children}</code>;
}
