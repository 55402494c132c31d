"use strict";
// Shows the rows that have all words and pass all filters; both stand in the address, so that a page that is loaded
// again, or whose address is sent to somebody, shows the same. Without this file, all rows are shown.
const search = document.getElementById("search");
if (search) {
  const rows = [...document.querySelectorAll("#features tbody tr")];
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const filters = [...document.querySelectorAll("[data-filter]")];
  const has = (row, name, value) => JSON.parse(row.dataset[name]).includes(value);
  const show = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    rows.forEach((row, number) => {
      const passes =
        words.every((word) => texts[number].includes(word)) &&
        filters.every((one) => !one.value || has(row, one.dataset.filter, one.value));
      row.hidden = !passes;
      count += passes;
    });
    document.getElementById("count").textContent = count;
    document.getElementById("none").hidden = count > 0;
  };
  const restore = () => {
    const kept = new URLSearchParams(location.hash.slice(1));
    search.value = kept.get("q") ?? "";
    filters.forEach((one) => {
      one.value = kept.get(one.dataset.filter) ?? "";
      if (one.selectedIndex < 0) one.value = "";
    });
    show();
  };
  const change = () => {
    const chosen = [["q", search.value], ...filters.map((one) => [one.dataset.filter, one.value])];
    location.replace(`#${new URLSearchParams(chosen.filter(([, value]) => value))}`);
    show();
  };
  search.form.hidden = false;
  search.addEventListener("input", change);
  filters.forEach((one) => one.addEventListener("change", change));
  window.addEventListener("hashchange", restore);
  search.form.addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !/^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) {
      event.preventDefault();
      search.focus();
    }
  });
  restore();
}
