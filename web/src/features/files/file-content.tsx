import { useQuery } from "@tanstack/react-query";
import { CloudOff, Download, FileQuestion } from "lucide-react";
import { send } from "@/api/http";
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

const IMAGE = /\.(?:png|jpe?g|gif|webp|avif|ico)$/i;

type Content = { kind: "text"; text: string } | { kind: "binary" | "large"; size_bytes: number };

async function readContent(url: string, signal: AbortSignal): Promise<Content> {
  const response = await send(url, { signal });
  const blob = await response.blob();
  if (blob.size > MAX_BYTES) return { kind: "large", size_bytes: blob.size };
  const text = await blob.text();
  return text.includes("\0") ? { kind: "binary", size_bytes: blob.size } : { kind: "text", text };
}

export function FileContent({ sessionId, path }: { sessionId: string; path: string }) {
  const isImage = IMAGE.test(path);
  const url = fileUrl(sessionId, path);
  const content = useQuery({
    queryKey: ["content", sessionId, path],
    queryFn: ({ signal }) => readContent(url.slice("/api/v1".length), signal),
    enabled: !isImage,
    staleTime: 2000,
  });
  if (isImage) {
    return (
      <div className="grid place-items-center p-6">
        <img src={url} alt={path} className="max-w-full rounded-lg border bg-sunken" />
      </div>
    );
  }
  if (content.isPending) return <Skeleton className="m-4 h-64" />;
  if (content.isError) {
    const { reason, hint } = asFailure(content.error);
    return (
      <Notice icon={CloudOff} title="The file could not be read" action={<Button busy={content.isFetching} onClick={() => { void content.refetch(); }}>Try again</Button>}>
        {reason} {hint}
      </Notice>
    );
  }
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
  return <Code code={content.data.text.replace(/\n$/, "")} language={languageOf(path)} numbered className="rounded-none border-0 bg-transparent" />;
}
