// A model's Markdown as elements: the common part of CommonMark, and tables. Whatever else is in a
// text, HTML first of all, is shown as the text that it is.

/** Shows `text` in `parent`; blocks that are as before keep their elements, and any selection. */
function renderMarkdown(parent, text) {
  const blocks = splitBlocks(text.split("\n"));
  blocks.forEach((block, index) => {
    const key = JSON.stringify(block);
    const old = parent.children[index];
    if (old?.markdown === key) return;
    const made = makeBlock(block);
    made.markdown = key;
    if (old) old.replaceWith(made);
    else parent.append(made);
  });
  while (parent.children.length > blocks.length) parent.lastChild.remove();
}

const FENCE = /^\s*(`{3,}|~{3,})\s*([\w+#.-]*)/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/;
const TABLE_RULE = /^\s*\|?(\s*:?-+:?\s*\|)+\s*(:?-+:?\s*)?$/;
const isBlank = (line) => !line.trim();

/** Blocks: `{kind, lines}`, or for a fence `{kind, language, lines}`. */
function splitBlocks(lines) {
  const blocks = [];
  for (let at = 0; at < lines.length; ) {
    const line = lines[at];
    const fence = FENCE.exec(line);
    let end = at + 1;
    if (isBlank(line)) {
      at = end;
      continue;
    }
    if (fence) {
      while (end < lines.length && !lines[end].trim().startsWith(fence[1])) end++;
      blocks.push({ kind: "code", language: fence[2], lines: lines.slice(at + 1, end) });
      at = end + 1;
      continue;
    }
    let kind = "paragraph";
    if (HEADING.test(line)) {
      kind = "heading";
    } else if (/^ {0,3}([-*_])( *\1){2,} *$/.test(line)) {
      kind = "rule";
    } else if (ITEM.test(line)) {
      kind = "list";
      // Up to a line that neither is an item nor belongs to one by its indent.
      const belongs = (it) => ITEM.test(it) || /^\s{2,}\S/.test(it);
      while (end < lines.length) {
        const isGap = isBlank(lines[end]) && belongs(lines[end + 1] ?? "");
        if (!isGap && (isBlank(lines[end]) || !(belongs(lines[end]) || !startsBlock(lines, end)))) break;
        end++;
      }
    } else if (line.startsWith(">")) {
      kind = "quote";
      while (end < lines.length && lines[end].startsWith(">")) end++;
    } else if (line.includes("|") && TABLE_RULE.test(lines[at + 1] ?? "")) {
      kind = "table";
      while (end < lines.length && lines[end].includes("|")) end++;
    } else {
      while (end < lines.length && !isBlank(lines[end]) && !startsBlock(lines, end)) end++;
    }
    blocks.push({ kind, lines: lines.slice(at, end) });
    at = end;
  }
  return blocks;
}

function startsBlock(lines, at) {
  const line = lines[at];
  return FENCE.test(line) || HEADING.test(line) || ITEM.test(line) || line.startsWith(">");
}

function makeBlock({ kind, lines, language }) {
  switch (kind) {
    case "code": {
      const code = lines.join("\n");
      const head = make("div", {}, language, makeCopyButton(() => code));
      return make("div", { className: "code" }, head, make("pre", { tabIndex: 0 }, make("code", {}, code)));
    }
    case "heading": {
      const [, marks, text] = HEADING.exec(lines[0]);
      // Under the page's own headings.
      return make(`h${Math.min(marks.length + 2, 6)}`, {}, ...inline(text));
    }
    case "rule":
      return make("hr");
    case "quote": {
      const quote = make("blockquote");
      renderMarkdown(quote, lines.map((line) => line.replace(/^> ?/, "")).join("\n"));
      return quote;
    }
    case "list":
      return makeList(lines);
    case "table":
      return makeTable(lines);
    default:
      return make("p", {}, ...inline(lines.join("\n")));
  }
}

/** A list; what is indented under an item is Markdown of its own. */
function makeList(lines) {
  const [, indent, mark] = ITEM.exec(lines[0]);
  const isOrdered = /\d/.test(mark);
  const list = make(isOrdered ? "ol" : "ul");
  if (isOrdered) list.start = parseInt(mark, 10);
  const items = [];
  for (const line of lines) {
    const item = ITEM.exec(line);
    const last = items.at(-1);
    if (item && item[1].length <= indent.length + 1) items.push([item[3]]);
    else if (last.length === 1 && !isBlank(line) && !startsBlock([line], 0)) last[0] += `\n${line.trim()}`;
    else last.push(line);
  }
  for (const [first, ...rest] of items) {
    const entry = make("li", {}, ...inline(first));
    const depth = Math.min(...rest.filter((it) => !isBlank(it)).map((it) => it.search(/\S/)));
    const under = make("div");
    renderMarkdown(under, rest.map((it) => it.slice(depth)).join("\n"));
    entry.append(...under.children);
    list.append(entry);
  }
  return list;
}

function makeTable(lines) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/);
  const row = (line, tag) =>
    make("tr", {}, ...cells(line).map((it) => make(tag, {}, ...inline(it.trim().replaceAll("\\|", "|")))));
  const body = make("tbody", {}, ...lines.slice(2).map((line) => row(line, "td")));
  const table = make("table", {}, make("thead", {}, row(lines[0], "th")), body);
  cells(lines[1]).forEach((rule, column) => {
    if (!rule.trim().endsWith(":")) return;
    for (const it of table.rows) it.cells[column]?.classList.add("number");
  });
  return make("div", { className: "wide", tabIndex: 0 }, table);
}

// In this order: code before what it may hold. No part can match in two ways, so that no text
// takes longer than its length squared.
const INLINE = new RegExp(
  [
    "(?<ticks>`+)(?<code>[^`]+)\\k<ticks>(?!`)",
    "\\\\(?<escaped>[\\\\`*_{}\\[\\]()#+.!|<>~-])",
    "\\*\\*(?=\\S)(?<bold>(?:[^*]|\\*(?!\\*)|\\*(?=\\*\\*))+)\\*\\*",
    "(?<![\\w*])(?<mark>[*_])(?=\\S)(?<italic>[^*_]+)\\k<mark>(?!\\w)",
    "\\[(?<label>[^\\[\\]]+)\\]\\((?<target>[^\\s()]+(?:\\([^\\s()]*\\)[^\\s()]*)?)\\)",
    "(?<bare>https?://[^\\s<>\"`]*[^\\s<>\"`.,:;!?)*\\]])",
  ].join("|"),
  "g",
);

/** Text with code, bold, italic and links, as nodes. */
function inline(text) {
  const nodes = [];
  let at = 0;
  for (const match of text.matchAll(INLINE)) {
    nodes.push(text.slice(at, match.index));
    at = match.index + match[0].length;
    const { code, escaped, bold, italic, label, target, bare } = match.groups;
    if (code !== undefined) nodes.push(make("code", {}, code));
    else if (escaped !== undefined) nodes.push(escaped);
    else if (bold !== undefined) nodes.push(make("strong", {}, ...inline(bold)));
    else if (italic !== undefined) nodes.push(make("em", {}, ...inline(italic)));
    else nodes.push(makeLink(target ?? bare, label === undefined ? [bare] : inline(label)) ?? match[0]);
  }
  nodes.push(text.slice(at));
  return nodes.filter((node) => node !== "");
}

/** A link to the web or to a mailbox; `null` for any other scheme. */
function makeLink(target, children) {
  if (!/^(https?:\/\/|mailto:)/i.test(target)) return null;
  return make("a", { href: target, target: "_blank", rel: "noopener noreferrer" }, ...children);
}
