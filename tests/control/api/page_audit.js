// Run in the page: every violation of what makes it readable by everyone, as text.
() => {
  const wrong = [];
  const add = (what, element) => wrong.push(what + ': ' + element.outerHTML.slice(0, 120));
  for (const table of document.querySelectorAll('table')) {
    if (!table.caption) add('no caption', table);
    for (const th of table.querySelectorAll('th')) if (!['col', 'row'].includes(th.scope)) add('no scope', th);
  }
  for (const e of document.querySelectorAll('button, a, input, progress, svg, [role=region], section, nav')) {
    const labelled = e.getAttribute('aria-labelledby');
    const name = e.getAttribute('aria-label') || (labelled && document.getElementById(labelled)?.textContent)
      || (e.labels && e.labels[0]?.textContent) || e.textContent;
    if (!name.trim()) add('no name', e);
  }
  const ids = [...document.querySelectorAll('[id]')].map((e) => e.id);
  for (const id of ids) if (ids.filter((one) => one === id).length > 1) wrong.push('id twice: ' + id);
  if (!document.documentElement.lang) wrong.push('no language');
  for (const name of ['main', 'header', 'nav', 'h1'])
    if (document.querySelectorAll(name).length !== 1) wrong.push('not one ' + name);
  let before = 0;
  for (const h of document.querySelectorAll('h1, h2, h3')) {
    const level = Number(h.tagName[1]);
    if (level > before + 1) add('heading skips a level', h);
    before = level;
  }
  const rgb = (text) => text.match(/[\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const part = (c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const color = rgb(getComputedStyle(e).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || e.tagName === 'TITLE' || !e.checkVisibility() || e.disabled) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(ground(e))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) add('contrast ' + contrast.toFixed(2), e);
  }
  return wrong;
}
