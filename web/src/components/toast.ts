/** Tells of something that did not work. The library comes when it is first needed. */
export function toastError(title: string, description = ""): void {
  void import("sonner").then(({ toast }) => toast.error(title, { description }));
}
