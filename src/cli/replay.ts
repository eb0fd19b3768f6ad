/** `objectlog replay`: after a database was restored from a backup, stores again what the broker still holds. */
import { jetstreamManager } from "@nats-io/jetstream"
import { Effect, Redacted } from "effect"
import { Command } from "effect/cli"
import { attempt } from "../broker/provision.ts"
import { replay } from "../broker/replay.ts"
import { connected } from "../client/connection.ts"
import { printLine } from "./output.ts"
import { serversFor } from "./servers.ts"

export const replayCommand = Command.make(
  "replay",
  {},
  Effect.fnUntraced(function* () {
    const { logsTopic, servers } = yield* serversFor
    const { connection } = yield* connected(Redacted.value(servers))
    const jsm = yield* attempt("JetStream", () => jetstreamManager(connection))
    for (const { messages, since, stream } of yield* replay(jsm, logsTopic)) {
      yield* printLine(
        since === undefined
          ? `${stream}: nothing is left there`
          : `${stream}: ${messages} ${messages === 1 ? "request" : "requests"} since ${since.toISOString()} will be delivered again`,
      )
    }
    yield* printLine("What is stored already is found and not stored twice; its events are published again.")
  }, Effect.scoped),
).pipe(
  Command.withDescription(
    "have the appends that the broker still holds delivered again, after a database was restored from a backup",
  ),
)
