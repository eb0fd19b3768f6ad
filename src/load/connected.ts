/** The load generator's connection: it outlives restarts of the broker and tells when it was made again. */
import { connect, type NatsConnection } from "@nats-io/transport-node"
import { Effect, Redacted, Schedule, Stream, type Scope } from "effect"
import { connectionOptions } from "../broker/connectionOptions.ts"
import { attempt } from "../broker/provision.ts"
import { ClientFailed } from "../cli/Client.ts"

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
  const { options, shown } = connectionOptions(Redacted.value(servers))
  if (shown === "") return yield* new ClientFailed({ reason: "NATS_URL: expected host:port or nats://host:port" })
  const connection = yield* Effect.acquireRelease(
    attempt("connect", () =>
      connect({
        ...options,
        name: "objectlog load",
        maxReconnectAttempts: -1,
        reconnectTimeWait: 250,
        reconnectJitter: 100,
        pingInterval: 10_000,
        timeout: 2_000,
      }),
    ),
    (made) => Effect.promise(() => made.close()),
  ).pipe(
    Effect.retry({ schedule: Schedule.spaced("1 second"), times: connectSeconds }),
    Effect.mapError((error) => new ClientFailed({ reason: `can't connect to NATS at ${shown}: ${error.message}` })),
  )
  let up = true
  yield* Stream.fromAsyncIterable(connection.status(), (cause) => cause).pipe(
    Stream.runForEach((status) => {
      if (status.type === "disconnect") {
        up = false
        return notice("the connection to the broker is lost; it is made again")
      }
      if (status.type !== "reconnect") return Effect.void
      up = true
      reconnected()
      return notice("connected to the broker again")
    }),
    Effect.ignore,
    Effect.forkScoped,
  )
  return { connection, isUp: () => up && !connection.isClosed() }
})
