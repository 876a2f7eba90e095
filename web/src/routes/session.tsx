export function SessionPage() {
  return <main />;
}
