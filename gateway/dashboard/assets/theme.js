// Runs before the first paint, so that a chosen theme does not flash in the other one's colours.
"use strict";
try {
  const chosen = localStorage.getItem("mesh-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
  // Storage is switched off: the system's theme it is.
}
