/**
 * A connection to the broker while it lasts: what is told of it, and its end.
 *
 * The client library makes a lost connection again by itself, but can close one for good; found in its sources (nats-core
 * 3.4, protocol.js): a login that was refused twice, which `connectionOptions` switches off; no server left to try, which
 * happens with a limit of attempts alone; an authenticator that throws; and `close` and `drain`, which are ours. It can also
 * hang: a connection without any sign is given up only when what was written to it has left, which may never be.
 */
import { errors, type NatsConnection, type PermissionViolationError, type Status } from "@nats-io/transport-node"
import { Effect, Latch, Option, Schema, Stream, type Scope } from "effect"
import type { Socket } from "node:net"

/** A connection has ended, and nothing makes it again: what needs it can't go on in this process. */
export class ConnectionClosed extends Schema.TaggedError<ConnectionClosed>()("ConnectionClosed", {
  reason: Schema.String,
}) {
  override get message(): string {
    return `the connection to the broker has ended for good (${this.reason}): a new start makes a new one`
  }
}

/** The state of a connection, and who wants to hear of it. */
export class ConnectionState {
  readonly #up = Latch.makeUnsafe(true)
  readonly #down = Latch.makeUnsafe(false)
  /** Attempts to make it again, so far. */
  attempts = 0
  /** Why it could not be made again, or what the server has complained of, since it was last made; each is told once. */
  complaint: string | undefined
  /** Called when the connection is lost. */
  readonly onDisconnect = new Set<() => void>()
  /** Called when the connection was made again, before anything else is done with it. */
  readonly onReconnect = new Set<() => void>()
  /** Called when the server refuses the right to publish or to subscribe. */
  readonly onViolation = new Set<(violation: PermissionViolationError) => void>()

  /** False from the loss of the connection until it was made again. */
  get connected(): boolean {
    return Latch.isOpen(this.#up)
  }

  /**
   * Asks something of the broker while the connection is there; once it is lost, again when it was made again: the library
   * would wait for the answer to the first time.
   */
  whileConnected<A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> {
    return this.#up.await.pipe(
      Effect.andThen(Effect.raceFirst(Effect.asSome(self), Effect.as(this.#down.await, Option.none<A>()))),
      Effect.flatMap(Option.match({ onSome: Effect.succeed, onNone: () => this.whileConnected(self) })),
    )
  }

  disconnected(): void {
    this.#up.closeUnsafe()
    this.#down.openUnsafe()
    for (const listener of this.onDisconnect) listener()
  }

  reconnected(): void {
    this.complaint = undefined
    this.#down.closeUnsafe()
    this.#up.openUnsafe()
    for (const listener of this.onReconnect) listener()
  }
}

/** Of the connection's inside. test/nats/connection.test.ts holds the library to it. */
interface Inside {
  readonly protocol: { readonly transport: { readonly socket: Socket | undefined } }
}

/** Takes the state on; gives what is worth being said. */
const follow = (connection: NatsConnection, state: ConnectionState, status: Status): string | undefined => {
  switch (status.type) {
    case "staleConnection":
      // The library waits until all was written. Nothing will be: without this it would wait for as long as TCP does.
      ;(connection as NatsConnection & Inside).protocol.transport.socket?.destroy()
      return undefined
    case "disconnect":
    case "reconnecting": {
      if (status.type === "reconnecting") state.attempts++
      if (!state.connected) return undefined
      state.disconnected()
      return "the connection to the broker is lost; it is made again"
    }
    case "reconnect": {
      // Each refused login ends with one too.
      if (state.connected) return undefined
      state.reconnected()
      return "connected to the broker again"
    }
    case "ldm":
      return "the broker is about to shut down"
    case "error": {
      const { error } = status
      if (error instanceof errors.PermissionViolationError) {
        for (const listener of state.onViolation) listener(error)
        return undefined
      }
      if (error.message === state.complaint) return undefined
      state.complaint = error.message
      return error instanceof errors.AuthorizationError
        ? `the broker refuses the login: ${error.message}`
        : `the broker says: ${error.message}`
    }
    default:
      return undefined
  }
}

/** Follows a connection until the scope closes; `tell` hears what a person should know. */
export const watchConnection = Effect.fnUntraced(function* (
  connection: NatsConnection,
  tell: (text: string, type: Status["type"]) => Effect.Effect<void>,
): Effect.fn.Return<ConnectionState, never, Scope.Scope> {
  const state = new ConnectionState()
  yield* Stream.fromAsyncIterable(connection.status(), (cause) => cause).pipe(
    Stream.map((status) => [status.type, follow(connection, state, status)] as const),
    Stream.runForEach(([type, text]) => (text === undefined ? Effect.void : tell(text, type))),
    Effect.ignore,
    Effect.forkScoped,
  )
  return state
})

/** Fails when the connection has ended for good. */
export const connectionEnd = (
  connection: NatsConnection,
  state: ConnectionState,
): Effect.Effect<never, ConnectionClosed> =>
  Effect.flatMap(
    Effect.promise(() => connection.closed()),
    (error) =>
      Effect.fail(
        new ConnectionClosed({ reason: error instanceof Error ? error.message : (state.complaint ?? "closed") }),
      ),
  )
