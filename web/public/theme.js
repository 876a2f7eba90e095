// Runs before the first paint, so that a dark page never flashes white. A file of its own: the policy allows no inline script.
(function () {
  var choice = null;
  try {
    choice = localStorage.getItem("ship.theme");
  } catch {
    // Storage may be off; the system's choice stands.
  }
  var dark = choice === "dark" || (choice !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.classList.toggle("dark", dark);
})();
