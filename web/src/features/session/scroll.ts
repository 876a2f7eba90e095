import { useCallback, useEffect, useRef, useState, type RefObject } from "react";

/** This near to the end counts as being there. */
const NEAR_PX = 60;

interface Following {
  scroller: RefObject<HTMLDivElement | null>;
  content: RefObject<HTMLDivElement | null>;
  isFollowing: boolean;
  follow: () => void;
}

/** Keeps the end in view while the content grows, until the person scrolls up. */
export function useFollowEnd(): Following {
  const scroller = useRef<HTMLDivElement>(null);
  const content = useRef<HTMLDivElement>(null);
  const following = useRef(true);
  const [isFollowing, setFollowing] = useState(true);

  useEffect(() => {
    const box = scroller.current;
    const inner = content.current;
    if (!box || !inner) return;
    const toEnd = (): void => {
      if (following.current) box.scrollTop = box.scrollHeight;
    };
    let last = box.scrollTop;
    const onScroll = (): void => {
      const isNear = box.scrollHeight - box.clientHeight - box.scrollTop < NEAR_PX;
      // Growth alone never moves up: only a person does.
      if (isNear) following.current = true;
      else if (box.scrollTop < last) following.current = false;
      last = box.scrollTop;
      setFollowing(following.current);
    };
    const sizes = new ResizeObserver(toEnd);
    sizes.observe(inner);
    sizes.observe(box);
    box.addEventListener("scroll", onScroll, { passive: true });
    return () => {
      sizes.disconnect();
      box.removeEventListener("scroll", onScroll);
    };
  }, []);

  const follow = useCallback(() => {
    following.current = true;
    setFollowing(true);
    scroller.current?.scrollTo({ top: scroller.current.scrollHeight });
  }, []);

  return { scroller, content, isFollowing, follow };
}
