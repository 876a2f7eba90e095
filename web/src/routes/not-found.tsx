import { Link } from "@tanstack/react-router";
import { Compass } from "lucide-react";
import { Button } from "@/components/button";
import { Notice } from "@/components/notice";

export function NotFound() {
  return (
    <main className="grid min-h-full place-items-center">
      <title>Not found · Ship</title>
      <Notice
        isPage
        icon={Compass}
        title="There is nothing at this address"
        action={
          <Button asChild>
            <Link to="/">All sessions</Link>
          </Button>
        }
      >
        The link may be mistyped, or it leads to something that this server does not have.
      </Notice>
    </main>
  );
}
