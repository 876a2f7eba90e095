import { asFailure } from "./failure-box";
import { toastError } from "./toast";

/** Tells of an action that did not work, and what to do. For `onError` of a mutation. */
export const toastFailure =
  (title: string) =>
  (error: unknown): void => {
    const { reason, hint } = asFailure(error);
    toastError(title, [reason, hint].filter(Boolean).join(" "));
  };
