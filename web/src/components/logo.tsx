/** The mark: a sail over a hull. */
export function Logo({ className }: { className?: string }) {
  return (
    <svg viewBox="0 0 24 24" fill="none" aria-hidden className={className}>
      <path d="M12 3v9.5M12 4l5.2 7.5H12" stroke="currentColor" strokeWidth="1.8" strokeLinejoin="round" strokeLinecap="round" />
      <path d="M4 15h16l-2.2 4.1a1.8 1.8 0 0 1-1.6.9H7.8a1.8 1.8 0 0 1-1.6-.9z" fill="currentColor" />
    </svg>
  );
}
