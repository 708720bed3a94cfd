// Elements. Words only ever enter the page as text nodes, whoever wrote them.

const byId = (id) => document.getElementById(id);

/** An element with properties (or, where it has no such property, attributes) and children. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Sets text that may be the same as before without waking whoever listens for changes. */
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A button that copies what `read` returns, and says that it has. */
function makeCopyButton(read) {
  const button = make("button", { type: "button", className: "quiet copy" }, "Copy");
  button.onclick = async () => {
    let said = "Copied";
    try {
      await navigator.clipboard.writeText(read());
    } catch {
      said = "Not allowed here"; // browsers want HTTPS or localhost for it
    }
    button.textContent = said;
    setTimeout(() => (button.textContent = "Copy"), 1500);
  };
  return button;
}
