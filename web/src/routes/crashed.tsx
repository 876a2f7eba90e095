import type { ErrorComponentProps } from "@tanstack/react-router";
import { Bug } from "lucide-react";
import { Button } from "@/components/button";
import { Notice } from "@/components/notice";

/** The page itself broke. Nothing is lost: the log is on the server. */
export function Crashed({ error, reset }: ErrorComponentProps) {
  return (
    <main className="grid min-h-full place-items-center">
      <title>Something broke · Ship</title>
      <Notice
        isPage
        icon={Bug}
        title="This page broke"
        action={
          <>
            <Button look="primary" onClick={reset}>
              Try again
            </Button>
            <Button
              onClick={() => {
                window.location.assign("/");
              }}
            >
              All sessions
            </Button>
          </>
        }
      >
        <p>The session itself goes on: everything it does is kept on the server.</p>
        <pre className="mt-3 max-h-40 overflow-auto rounded-lg border bg-sunken p-3 text-left font-mono text-xs whitespace-pre-wrap">
          {error instanceof Error ? error.message : String(error)}
        </pre>
      </Notice>
    </main>
  );
}
