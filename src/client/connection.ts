/** A client's connection: made within its time, and given up when it is away for too long. */
import { connect, errors, type NatsConnection, type NodeConnectionOptions } from "@nats-io/transport-node"
import { Duration, Effect, Schema } from "effect"
import { watchConnection } from "../nats/connection.ts"
import { connectionOptions, shownServers } from "../nats/connectionOptions.ts"

/** The broker or the workers could not be reached, or did not answer. One line, without credentials. */
export class ClientFailed extends Schema.TaggedError<ClientFailed>()("ClientFailed", { reason: Schema.String }) {
  override get message(): string {
    return this.reason
  }
}

/** What a client waits for an answer where nobody says how long. */
export const timeoutDefault = Duration.seconds(30)

/** How long one server may take to answer, and how long a lost connection is made again, in milliseconds. */
const connectMillis = 5_000
const awayMillis = 20_000

/** A time-out in milliseconds, as a timer takes it. */
export const timerMillis = (timeout: Duration.Duration): number =>
  Math.max(1, Math.min(Duration.toMillis(timeout), 0x7fff_ffff))

export const seconds = (timeout: Duration.Duration): string => `${Duration.toMillis(timeout) / 1000} s`

/** Each server has a share of the time: one that takes a connection and says nothing does not use up that of the others. */
const connectWithin = async (
  options: NodeConnectionOptions,
  servers: number,
  millis: number,
): Promise<NatsConnection> => {
  let timer: NodeJS.Timeout | undefined
  const timeout = Math.max(1, Math.min(connectMillis, Math.floor(millis / servers)))
  const connecting = connect({ ...options, timeout })
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no answer within ${millis / 1000} s`)), millis)
  })
  try {
    return await Promise.race([connecting, late])
  } catch (error) {
    // A connection that is made after all is nobody's.
    connecting
      .then(
        (connection) => connection.close(),
        () => undefined,
      )
      .catch(() => undefined)
    throw error
  } finally {
    clearTimeout(timer)
  }
}

/** What to say of a connection that could not be made; one line, without credentials. */
export const connectFailure = (error: unknown): string => {
  if (error instanceof errors.AuthorizationError) return "the server refused the credentials"
  if (error instanceof errors.TimeoutError) return "no answer in time"
  if (!(error instanceof Error)) return "unknown error"
  const text = error.message === "" && error.cause instanceof Error ? error.cause.message : error.message
  return text.split("\n", 1)[0]!
}

/** One connection for a command, closed with the scope, and when it is away for too long. */
export const connected = Effect.fnUntraced(function* (servers: string, timeout: Duration.Duration = timeoutDefault) {
  const shown = shownServers(servers)
  const connection = yield* Effect.acquireRelease(
    Effect.tryPromise({
      try: () =>
        connectWithin(connectionOptions(servers, "objectlog client"), shown.split(",").length, timerMillis(timeout)),
      catch: (error) => new ClientFailed({ reason: `can't connect to NATS at ${shown}: ${connectFailure(error)}` }),
    }),
    (made) => Effect.promise(() => made.close()),
  )
  const state = yield* watchConnection(connection, () => Effect.void)
  let away: NodeJS.Timeout | undefined
  state.onDisconnect.add(() => (away = setTimeout(() => void connection.close(), awayMillis)))
  state.onReconnect.add(() => clearTimeout(away))
  yield* Effect.addFinalizer(() => Effect.sync(() => clearTimeout(away)))
  return { connection, state }
})
