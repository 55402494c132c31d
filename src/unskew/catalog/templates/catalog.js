"use strict";
// Shows the rows that have all words and pass all filters. Without this file, all rows are shown.
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
  search.form.hidden = false;
  search.addEventListener("input", show);
  filters.forEach((one) => one.addEventListener("change", show));
  search.form.addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !/^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) {
      event.preventDefault();
      search.focus();
    }
  });
  show();
}
