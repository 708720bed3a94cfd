// One provider of the Vercel AI SDK: node ai_sdk.mjs PROVIDER URL QUESTION SCHEMA_QUESTION
// Prints what its tool was asked and what came out, streamed and not, and a structured answer.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, isStepCount, jsonSchema, Output, streamText, tool } from "ai";

const [provider, url, question, schemaQuestion] = process.argv.slice(-4);
const baseURL = `${url}/v1`;
const apiKey = "none";
const compatible = { name: "pippin", baseURL, supportsStructuredOutputs: true };
const model = {
  chat: () => createOpenAI({ baseURL, apiKey }).chat("scripted"),
  responses: () => createOpenAI({ baseURL, apiKey }).responses("scripted"),
  compatible: () => createOpenAICompatible(compatible)("scripted"),
  messages: () => createAnthropic({ baseURL, apiKey })("claude-scripted"),
}[provider]();

const asked = [];
const inputSchema = jsonSchema({
  type: "object",
  properties: { city: { type: "string" } },
  required: ["city"],
  additionalProperties: false,
});
const look = tool({
  description: "Tell the weather of a city.",
  inputSchema,
  execute: async ({ city }) => {
    asked.push(city);
    return "sunny, 31 degrees";
  },
});
const common = { model, maxRetries: 0 };
const looped = { ...common, prompt: question, tools: { look }, stopWhen: isStepCount(3) };
const whole = (await generateText(looped)).text;
const failures = [];
const stream = streamText({ ...looped, onError: ({ error }) => failures.push(String(error)) });
const streamed = await stream.text;
const { output } = await generateText({
  ...common,
  prompt: schemaQuestion,
  output: Output.object({ schema: inputSchema }),
});
console.log(JSON.stringify({ asked, whole, streamed, output, failures }));
