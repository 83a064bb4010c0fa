// Server-sent events over fetch: every `data:` as parsed JSON, until [DONE]. Comments and other fields are passed over.

export class ServerProblem extends Error {}

export async function* events(response) {
  if (!response.ok) throw new ServerProblem(await errorText(response));
  const decoder = new TextDecoder();
  const reader = response.body.getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read();
    waiting += done ? decoder.decode() : decoder.decode(value, { stream: true });
    const lines = waiting.split(/\r?\n/);
    waiting = done ? "" : lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new ServerProblem(event.error.message);
      yield event;
    }
    if (done) throw new ServerProblem("The connection was cut before the answer was complete.");
  }
}

export async function errorText(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered ${response.status}.`;
  }
}
