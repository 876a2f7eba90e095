import { lazy, Suspense } from "react";
import { useIsDark } from "@/lib/theme";

const Sonner = lazy(async () => ({ default: (await import("sonner")).Toaster }));

/** Where toasts appear. */
export function Toaster() {
  const isDark = useIsDark();
  return (
    <Suspense>
      <Sonner theme={isDark ? "dark" : "light"} position="bottom-right" closeButton />
    </Suspense>
  );
}
