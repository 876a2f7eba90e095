import { toast } from "sonner";
import { asFailure } from "./failure-box";

/** Tells of an action that did not work, and what to do. For `onError` of a mutation. */
export const toastFailure =
  (title: string) =>
  (error: unknown): void => {
    const { reason, hint } = asFailure(error);
    toast.error(title, { description: [reason, hint].filter(Boolean).join(" ") });
  };
