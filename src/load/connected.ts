/** The load generator's connection: it outlives restarts of the broker and tells when it was made again. */
import { connect, type NatsConnection } from "@nats-io/transport-node"
import { Effect, Redacted, Schedule, type Scope } from "effect"
import { watchConnection } from "../nats/connection.ts"
import { connectionOptions, shownServers } from "../nats/connectionOptions.ts"
import { ClientFailed, connectFailure } from "../client/connection.ts"

/** How long the first connection may take, over all attempts, in seconds: a broker that is starting is waited for. */
const connectSeconds = 30

export interface Connected {
  readonly connection: NatsConnection
  readonly isUp: () => boolean
}

export const connected = Effect.fnUntraced(function* (
  servers: Redacted.Redacted,
  reconnected: () => void,
  notice: (text: string) => Effect.Effect<void>,
): Effect.fn.Return<Connected, ClientFailed, Scope.Scope> {
  const list = Redacted.value(servers)
  const connection = yield* Effect.acquireRelease(
    Effect.tryPromise({
      try: () => connect(connectionOptions(list, "objectlog load")),
      catch: (error) =>
        new ClientFailed({ reason: `can't connect to NATS at ${shownServers(list)}: ${connectFailure(error)}` }),
    }),
    (made) => Effect.promise(() => made.close()),
  ).pipe(Effect.retry({ schedule: Schedule.spaced("1 second"), times: connectSeconds }))
  const state = yield* watchConnection(connection, notice)
  state.onReconnect.add(reconnected)
  const refused = new Set<string>()
  const runFork = Effect.runForkWith(yield* Effect.context())
  state.onViolation.add(({ message }) => {
    if (refused.has(message)) return
    refused.add(message)
    runFork(notice(`the broker refuses: ${message}`))
  })
  return { connection, isUp: () => state.connected && !connection.isClosed() }
})
