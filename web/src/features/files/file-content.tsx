import { useQuery } from "@tanstack/react-query";
import { CloudOff, Download, FileQuestion } from "lucide-react";
import { useEffect, useState } from "react";
import { API, send } from "@/api/http";
import { fileUrl } from "@/api/sessions";
import { Button } from "@/components/button";
import { Code } from "@/components/code";
import { asFailure } from "@/components/failure-box";
import { Notice } from "@/components/notice";
import { Skeleton } from "@/components/skeleton";
import { fileSize } from "@/lib/format";
import { languageOf } from "@/lib/language";

/** More text than this would freeze the page; it can be downloaded. */
const MAX_BYTES = 1024 * 1024;

/** The server names no type for what comes from a sandbox; these are drawn as images and can do nothing else. */
const IMAGES: Record<string, string> = {
  png: "image/png",
  jpg: "image/jpeg",
  jpeg: "image/jpeg",
  gif: "image/gif",
  webp: "image/webp",
  avif: "image/avif",
};

type Content =
  | { kind: "text"; text: string }
  | { kind: "image"; blob: Blob }
  | { kind: "binary" | "large"; size_bytes: number };

async function readContent(path: string, url: string, signal: AbortSignal): Promise<Content> {
  const response = await send(url, { signal });
  const blob = await response.blob();
  const image = IMAGES[path.slice(path.lastIndexOf(".") + 1).toLowerCase()];
  if (image) return { kind: "image", blob: new Blob([blob], { type: image }) };
  if (blob.size > MAX_BYTES) return { kind: "large", size_bytes: blob.size };
  const text = await blob.text();
  return text.includes("\0") ? { kind: "binary", size_bytes: blob.size } : { kind: "text", text };
}

export function FileContent({ sessionId, path }: { sessionId: string; path: string }) {
  const url = fileUrl(sessionId, path);
  const content = useQuery({
    queryKey: ["content", sessionId, path],
    queryFn: ({ signal }) => readContent(path, url.slice(API.length), signal),
    staleTime: 2000,
  });
  if (content.isPending) return <Skeleton className="m-4 h-64" />;
  if (content.isError) {
    const { reason, hint } = asFailure(content.error);
    return (
      <Notice icon={CloudOff} title="The file could not be read" action={<Button busy={content.isFetching} onClick={() => { void content.refetch(); }}>Try again</Button>}>
        {reason} {hint}
      </Notice>
    );
  }
  if (content.data.kind === "image") return <Picture blob={content.data.blob} alt={path} />;
  if (content.data.kind !== "text") {
    return (
      <Notice
        icon={FileQuestion}
        title={content.data.kind === "large" ? "Too large to show" : "A binary file"}
        action={
          <Button asChild>
            <a href={url} download={path.slice(path.lastIndexOf("/") + 1)}>
              <Download aria-hidden /> Download
            </a>
          </Button>
        }
      >
        {fileSize(content.data.size_bytes)}
      </Notice>
    );
  }
  return <Code code={content.data.text.replace(/\n$/, "")} language={languageOf(path)} firstLine={1} className="rounded-none border-0 bg-transparent" />;
}

function Picture({ blob, alt }: { blob: Blob; alt: string }) {
  const [url, setUrl] = useState("");
  useEffect(() => {
    const made = URL.createObjectURL(blob);
    // eslint-disable-next-line react-hooks/set-state-in-effect -- the address exists from here until the clean-up
    setUrl(made);
    return () => {
      URL.revokeObjectURL(made);
    };
  }, [blob]);
  if (!url) return null;
  return (
    <div className="grid place-items-center p-6">
      <img src={url} alt={alt} className="max-w-full rounded-lg border bg-sunken" />
    </div>
  );
}
