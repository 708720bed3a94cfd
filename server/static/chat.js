// The chat: one conversation, in memory only, over POST /v1/chat/completions.

const chat = {
  model: "", // set by the first reading of /health
  turns: [], // messages that were answered, as the API takes them
  images: [], // data URLs to go with the next message
  stopper: null, // AbortController of the answer under way
};

/** Sends what stands in the form, and shows the answer as it comes. */
async function sendMessage() {
  const text = byId("message").value.trim();
  const { turns, images } = chat; // a new chat gets new ones, whatever is still under way
  if (chat.stopper || !(text || images.length)) return;
  byId("message").value = "";
  setImages([]);
  const parts = images.map((url) => ({ type: "image_url", image_url: { url } }));
  const turn = { role: "user", content: images.length ? [{ type: "text", text }, ...parts] : text };
  const asked = showTurn("You", make("p", {}, text), ...images.map(makeThumbnail));
  const answer = new AnswerView();
  setAnswering(new AbortController());
  try {
    for await (const event of streamAnswer([...turns, turn], chat.stopper.signal)) answer.take(event);
    answer.finish();
  } catch (error) {
    answer.finish(error.name === "AbortError" ? "Stopped." : undefined);
    if (error.name !== "AbortError") answer.fail(error.message);
    if (error.status === 401) byId("key").focus();
  }
  setAnswering(null);
  if (answer.content) {
    turns.push(turn, { role: "assistant", content: answer.content });
    return;
  }
  // It is no part of the conversation: what the server refused once it would refuse ever after.
  asked.classList.add("unanswered");
  if (answer.hasFailed) byId("message").value ||= text;
}

/** Parsed events of one answer. */
async function* streamAnswer(turns, signal) {
  const system = byId("system").value.trim();
  const temperature = byId("temperature").valueAsNumber;
  const body = {
    model: chat.model,
    messages: system ? [{ role: "system", content: system }, ...turns] : turns,
    stream: true,
    stream_options: { include_usage: true },
    ...(Number.isNaN(temperature) ? {} : { temperature }),
  };
  const headers = { "Content-Type": "application/json" };
  const response = await callApi("v1/chat/completions", { method: "POST", headers, body: JSON.stringify(body), signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("The connection broke off in the middle of the answer.");
    const frames = (rest + value).split("\n\n");
    rest = frames.pop();
    for (const frame of frames) {
      if (!frame.startsWith("data: ")) continue; // a comment that keeps the connection alive
      const data = frame.slice("data: ".length);
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

/** One answer on the page. */
class AnswerView {
  content = "";
  hasFailed = false;
  #reasoning = "";
  #begunAt = performance.now();
  #firstAt = null;
  #lastAt = null;
  #usage = null;
  #isCut = false;
  #isDrawing = false;

  constructor() {
    this.fold = make("details", { className: "reasoning", hidden: true }, make("summary", {}, "Thinking"), make("div"));
    this.text = make("div", { className: "text" });
    this.foot = make("p", { className: "note" });
    this.turn = showTurn("Answer", this.fold, this.text, this.foot);
    this.turn.classList.add("running");
  }

  take({ choices, usage }) {
    this.#usage = usage ?? this.#usage;
    const delta = choices[0]?.delta;
    if (!delta) return;
    this.#isCut ||= choices[0].finish_reason === "length";
    this.content += delta.content ?? "";
    this.#reasoning += delta.reasoning ?? "";
    if (delta.content || delta.reasoning) {
      this.#lastAt = performance.now();
      this.#firstAt ??= this.#lastAt;
    }
    if (this.#isDrawing) return;
    this.#isDrawing = true;
    requestAnimationFrame(() => {
      this.#isDrawing = false;
      this.#draw();
    });
  }

  /** The last of it is here. */
  finish(remark = this.#isCut ? "Cut off at the token limit." : "") {
    this.turn.classList.remove("running");
    this.fold.firstChild.textContent = "Reasoning";
    const facts = [remark, ...this.#facts()].filter(Boolean);
    this.foot.append(facts.join(" · "));
    if (this.content) this.foot.append(makeCopyButton(() => this.content));
    this.#draw();
  }

  fail(message) {
    this.hasFailed = true;
    this.foot.before(make("p", { className: "error", role: "alert" }, message));
    scrollToEnd();
  }

  #facts() {
    if (!this.#usage) return [];
    const { prompt_tokens, completion_tokens, prompt_tokens_details: details } = this.#usage;
    const seconds = (this.#lastAt - this.#firstAt) / 1000;
    return [
      `${FORMATS.count(completion_tokens)} tokens`,
      seconds > 0 ? `${FORMATS.rate((completion_tokens - 1) / seconds)} tokens/s` : "",
      this.#firstAt && `first after ${FORMATS.seconds((this.#firstAt - this.#begunAt) / 1000)}`,
      `${FORMATS.count(details?.cached_tokens ?? 0)} of ${FORMATS.count(prompt_tokens)} prompt tokens cached`,
    ];
  }

  #draw() {
    const log = byId("log");
    const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
    this.fold.hidden = !this.#reasoning;
    renderMarkdown(this.fold.lastChild, this.#reasoning);
    renderMarkdown(this.text, this.content);
    if (isAtEnd) scrollToEnd();
  }
}

function showTurn(who, ...content) {
  const heading = make("h3", { className: "unseen" }, who);
  const turn = make("article", { className: who.toLowerCase() }, heading, ...content);
  byId("log").append(turn);
  scrollToEnd();
  return turn;
}

function scrollToEnd() {
  byId("log").scrollTop = byId("log").scrollHeight;
}

function setAnswering(stopper) {
  chat.stopper = stopper;
  setText(byId("send"), stopper ? "Stop" : "Send");
  // Read out once it is whole, not word by word.
  byId("log").setAttribute("aria-busy", String(Boolean(stopper)));
}

function makeThumbnail(url) {
  return make("img", { src: url, alt: "Attached image" });
}

function setImages(urls) {
  chat.images = urls;
  const entries = urls.map((url, index) => {
    const button = make("button", { type: "button", "aria-label": `Remove image ${index + 1}` }, "×");
    button.onclick = () => {
      setImages(urls.filter((_, other) => other !== index));
      byId("message").focus();
    };
    return make("li", {}, makeThumbnail(url), button);
  });
  byId("images").replaceChildren(...entries);
  scrollToEnd(); // they take room from what was said last
}

async function addImages(files) {
  const isImage = (file) => file.type.startsWith("image/");
  const read = (file) =>
    new Promise((resolve, reject) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result);
      reader.onerror = () => reject(reader.error);
      reader.readAsDataURL(file);
    });
  const urls = await Promise.all([...files].filter(isImage).map(read));
  setImages([...chat.images, ...urls]);
}

function startChat() {
  const [form, message, file, section] = ["chat-form", "message", "image-file", "chat"].map(byId);
  form.onsubmit = (event) => {
    event.preventDefault();
    if (chat.stopper) chat.stopper.abort();
    else sendMessage();
  };
  message.onkeydown = (event) => {
    // Enter that ends the input of a composed character is not meant for us.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    sendMessage();
  };
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") chat.stopper?.abort();
  });
  byId("clear").onclick = () => {
    chat.stopper?.abort();
    chat.turns = [];
    byId("log").replaceChildren();
    message.focus();
  };
  byId("add-image").onclick = () => file.click();
  file.onchange = async () => {
    await addImages(file.files);
    file.value = ""; // so that the same file can be chosen again
    message.focus();
  };
  message.onpaste = (event) => {
    if (event.clipboardData.files.length) event.preventDefault();
    addImages(event.clipboardData.files);
  };
  section.ondragover = (event) => event.preventDefault();
  section.ondrop = (event) => {
    event.preventDefault();
    addImages(event.dataTransfer.files);
  };
}
