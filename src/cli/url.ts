/** `objectlog url`: the address of the embedded server with its credentials, for other clients. */
import { Effect, Redacted } from "effect"
import { Command } from "effect/cli"
import { printLine } from "./output.ts"
import { embeddedServer } from "./servers.ts"

export const urlCommand = Command.make(
  "url",
  {},
  Effect.fnUntraced(function* () {
    yield* printLine(Redacted.value(yield* embeddedServer))
  }),
).pipe(
  Command.withDescription("Print the address of the embedded server, with its credentials"),
  Command.withExamples([
    {
      command: "export NATS_URL=$(npm run -s objectlog url)",
      description: "For other clients, such as the nats command",
    },
  ]),
)
