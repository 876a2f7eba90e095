import { useEffect, useState } from "react";

/** The time in milliseconds, renewed every `every_ms`; `undefined` stands still. */
export function useNow(every_ms: number | undefined): number {
  const [now, setNow] = useState(Date.now);
  useEffect(() => {
    if (every_ms === undefined) return;
    const timer = setInterval(() => {
      setNow(Date.now());
    }, every_ms);
    return () => {
      clearInterval(timer);
    };
  }, [every_ms]);
  return now;
}
