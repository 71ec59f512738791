// Light or dark as Airflow is: these pages are shown in a frame of its own.
(() => {
  const root = document.documentElement;
  const outside = () => {
    try {
      return window.parent === window ? null : window.parent.document.documentElement;
    } catch {
      return null; // shown in a frame of somebody else's
    }
  };
  const follow = () => {
    const airflow = outside();
    if (!airflow) return;
    const dark = airflow.classList.contains("dark") || airflow.dataset.theme === "dark";
    root.dataset.theme = dark ? "dark" : "light";
  };
  follow();
  const airflow = outside();
  if (airflow) {
    new MutationObserver(() => {
      follow();
      document.dispatchEvent(new Event("themed"));
    }).observe(airflow, { attributes: true, attributeFilter: ["class", "data-theme"] });
  }
})();
