"use strict";
for (const tabs of document.querySelectorAll(".tabs")) {
  const panels = [...tabs.querySelectorAll(":scope > .panel")];
  if (panels.length < 2) { continue; }
  const list = document.createElement("div");
  list.className = "tablist";
  list.setAttribute("role", "tablist");
  const buttons = panels.map((panel, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = panel.dataset.title;
    button.setAttribute("role", "tab");
    panel.setAttribute("role", "tabpanel");
    panel.setAttribute("aria-label", panel.dataset.title);
    button.addEventListener("click", () => show(index));
    button.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) {
        const next = (index + step + panels.length) % panels.length;
        show(next);
        buttons[next].focus();
      }
    });
    list.append(button);
    return button;
  });
  const show = (chosen) => panels.forEach((panel, index) => {
    panel.hidden = index !== chosen;
    buttons[index].setAttribute("aria-selected", String(index === chosen));
    buttons[index].tabIndex = index === chosen ? 0 : -1;
  });
  tabs.classList.add("on");
  tabs.prepend(list);
  show(0);
}
const box = document.createElement("div");
box.className = "tipbox";
box.hidden = true;
document.body.append(box);
for (const tip of document.querySelectorAll(".tip")) {
  const title = tip.querySelector("title");
  tip.dataset.tip = title.textContent;
  title.remove();
}
for (const kind of ["pointerover", "pointerdown"]) {
  addEventListener(kind, (event) => {
    const tip = event.target.closest && event.target.closest(".tip");
    box.hidden = !tip;
    if (!tip) { return; }
    box.textContent = tip.dataset.tip;
    const left = Math.max(8, Math.min(event.clientX + 12, innerWidth - box.offsetWidth - 8));
    const above = event.clientY + 18 + box.offsetHeight > innerHeight;
    box.style.left = `${left}px`;
    box.style.top = `${above ? event.clientY - box.offsetHeight - 10 : event.clientY + 18}px`;
  });
}
addEventListener("scroll", () => { box.hidden = true; }, { passive: true });
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details:not([open])")) {
    part.open = true;
    addEventListener("afterprint", () => { part.open = false; }, { once: true });
  }
});
const number = (text) => parseFloat(text.replace("−", "-").replace("±", ""));
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const rising = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const key = (row) => row.cells[column].textContent.trim();
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [x, y] = [number(key(a)), number(key(b))];
        if (Number.isNaN(x) || Number.isNaN(y)) {
          return Number.isNaN(x) && Number.isNaN(y) ? key(a).localeCompare(key(b)) : Number.isNaN(x) ? 1 : -1;
        }
        return x - y;
      });
      table.tBodies[0].append(...(rising ? rows : rows.reverse()));
    });
  });
}
