import { createContext, useContext, useEffect, useState } from "react";

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

/** The moment that is looked at; 0 is now. */
export const Moment = createContext(0);

/** The time as it was at the moment that is looked at, ticking each second where that is now. */
export function useMoment(): number {
  const moment = useContext(Moment);
  const now = useNow(moment > 0 ? undefined : 1000);
  return moment > 0 ? moment : now;
}
