/**
 * A client of objectlog: it knows the broker and the contract, and no database.
 *
 * Requests are published with JetStream, so that the client knows that the broker has stored them. Responses come to an
 * inbox of its own: one wildcard subscription, told apart by `request_id`.
 */
import { jetstream, JetStreamApiError, JetStreamError } from "@nats-io/jetstream"
import {
  connect,
  createInbox,
  errors,
  type Msg,
  type NatsConnection,
  type NodeConnectionOptions,
} from "@nats-io/transport-node"
import { Context, Deferred, Duration, Effect, Layer, Option, Queue, Result, Schema, Stream } from "effect"
import { watchConnection } from "../nats/connection.ts"
import { connectionOptions, shownServers } from "../nats/connectionOptions.ts"
import { parseCursor } from "../contract/Cursor.ts"
import type { ObjectId } from "../contract/ObjectId.ts"
import { encodeError } from "../contract/Protocol.ts"

/** The broker or the workers could not be reached, or did not answer. One line, without credentials. */
export class ClientFailed extends Schema.TaggedError<ClientFailed>()("ClientFailed", { reason: Schema.String }) {
  override get message(): string {
    return this.reason
  }
}

/** A worker refused the request: an error event of the contract. */
export class RequestRefused extends Schema.TaggedError<RequestRefused>()("RequestRefused", {
  code: Schema.String,
  reason: Schema.String,
  /** The error event as it was received. */
  event: Schema.String,
}) {
  override get message(): string {
    return `${this.code}: ${this.reason}`
  }
}

export interface Append {
  readonly id: ObjectId
  readonly log: string
  /** Idempotency key within the object. */
  readonly messageId?: string | undefined
}

/** Where an append ended up. */
export interface Appended {
  readonly position: number
  readonly seq: number
  /** Unix milliseconds. */
  readonly timestamp: number
  readonly duplicate: boolean
  /** The event as it was received: there the id has all its digits. */
  readonly event: string
}

export interface Read {
  readonly id: ObjectId
  readonly limit?: number | undefined
  /** Unix milliseconds, inclusive. */
  readonly from?: number | undefined
  /** Unix milliseconds, exclusive. */
  readonly to?: number | undefined
  readonly order?: "asc" | "desc" | undefined
  readonly after?: string | undefined
  readonly afterPosition?: number | undefined
}

export interface Entry {
  readonly position: number
  readonly seq: number
  /** Unix milliseconds. */
  readonly timestamp: number
  readonly log: string
}

export interface Page {
  readonly page: number
  readonly last: boolean
  readonly entries: ReadonlyArray<Entry>
  /** Where `limit` cut the read short: the `after` of the next read. */
  readonly next?: string | undefined
}

export interface ClientOptions {
  /** Comma-separated server list; may carry credentials. */
  readonly servers: string
  readonly logsTopic: string
  readonly queryTopic: string
  /** How long to wait without any message for an answer; 30 s where it is not given. */
  readonly timeout?: Duration.Input | undefined
}

/** Appends that are published and not answered yet. */
const window = 256
/** What a command waits where nobody says how long, how long one server may take to answer, and how long a lost one is tried again. */
const timeoutDefault = Duration.seconds(30)
const connectMillis = 5_000
const awayMillis = 20_000

/**
 * A core subscription has no back-pressure: what a reader does not take piles up in memory. A long read is therefore
 * made of reads of about this size, each asked for when the one before was taken.
 */
const readBytes = 8 * 1024 * 1024
const firstReadEntries = 256
const readEntriesMax = 50_000

// --- The pure parts

const field = (name: string, value: number | string | undefined): string =>
  value === undefined ? "" : `,"${name}":${typeof value === "string" ? JSON.stringify(value) : value}`

/** By concatenation, so that an id keeps its digits. */
export const encodeAppendRequest = (append: Append, requestId: string, replyTo: string): string =>
  `{"id":${append.id},"log":${JSON.stringify(append.log)},"request_id":"${requestId}","reply_to":"${replyTo}"}`

export const encodeReadRequest = (read: Read, requestId: string, replyTo?: string): string =>
  `{"id":${read.id}${field("limit", read.limit)}${field("from", read.from)}${field("to", read.to)}${field("order", read.order)}${field("after", read.after)}${field("after_position", read.afterPosition)},"request_id":"${requestId}"${field("reply_to", replyTo)}}`

export type ReadOrder = "asc" | "desc" | "position"

/** The order in which a read's entries come. */
export const orderOf = (read: Read): ReadOrder =>
  read.afterPosition !== undefined
    ? "position"
    : ((read.after === undefined ? undefined : parseCursor(read.after, read.id)?.order) ?? read.order ?? "asc")

const isAfter = (order: ReadOrder, entry: Entry, last: Entry): boolean => {
  if (order === "position") return entry.position > last.position
  const difference = entry.timestamp - last.timestamp || entry.seq - last.seq
  return order === "asc" ? difference > 0 : difference < 0
}

/** A page as an event has it. */
export interface ReceivedPage extends Page {
  readonly snapshot: string
}

/** The pages of one snapshot. */
interface Snapshot {
  /** The next page to hand on. */
  expected: number
  /** Pages that came before their turn. */
  readonly early: Map<number, ReceivedPage>
}

/**
 * Puts a read's pages together, those of each snapshot for themselves and in their order. A read that another worker took
 * over starts again, with a snapshot of its own, and the pages of both may come mixed. What was handed on cannot be taken
 * back: in another snapshot it is skipped. Whichever snapshot has its last page first ends the read.
 */
export class PageMerge {
  readonly #order: ReadOrder
  readonly #snapshots = new Map<string, Snapshot>()
  /** The last entry that was handed on, and whose it was. */
  #last: Entry | undefined
  #lastOf: Snapshot | undefined

  constructor(order: ReadOrder) {
    this.#order = order
  }

  /** What can be handed on after a page arrived; `undefined` for one that repeats, or comes before its turn. */
  accept(page: ReceivedPage): Omit<Page, "page"> | undefined {
    let snapshot = this.#snapshots.get(page.snapshot)
    if (snapshot === undefined) this.#snapshots.set(page.snapshot, (snapshot = { expected: 0, early: new Map() }))
    if (page.page < snapshot.expected) return undefined
    snapshot.early.set(page.page, page)
    const entries: Array<Entry> = []
    let end: ReceivedPage | undefined
    const before = snapshot.expected
    for (let next; end === undefined && (next = snapshot.early.get(snapshot.expected)) !== undefined;) {
      snapshot.early.delete(snapshot.expected++)
      for (const entry of this.#fresh(snapshot, next.entries)) entries.push(entry)
      if (next.last) end = next
    }
    return snapshot.expected === before ? undefined : { entries, last: end !== undefined, next: end?.next }
  }

  /** Those of a page that were not handed on from another snapshot. */
  #fresh(snapshot: Snapshot, entries: ReadonlyArray<Entry>): ReadonlyArray<Entry> {
    const last = this.#last
    let fresh = entries
    if (last !== undefined && this.#lastOf !== snapshot) {
      // A position is unique in its object. Without it in this page, the sort order tells.
      const index = entries.findIndex((entry) => entry.position === last.position)
      const first = index >= 0 ? index + 1 : entries.findIndex((entry) => isAfter(this.#order, entry, last))
      fresh = first < 0 ? [] : entries.slice(first)
    }
    if (fresh.length > 0) {
      this.#last = fresh.at(-1)
      this.#lastOf = snapshot
    }
    return fresh
  }
}

const Appending = Schema.Struct({
  status: Schema.Literal("ok"),
  position: Schema.Int,
  seq: Schema.Int,
  timestamp: Schema.Int,
  duplicate: Schema.optionalKey(Schema.Boolean),
})
const Reading = Schema.Struct({
  status: Schema.Literal("ok"),
  snapshot: Schema.String,
  page: Schema.Int,
  last: Schema.Boolean,
  entries: Schema.Array(
    Schema.Struct({ position: Schema.Int, seq: Schema.Int, timestamp: Schema.Int, log: Schema.String }),
  ),
  next: Schema.optionalKey(Schema.String),
})
const Refusing = Schema.Struct({
  status: Schema.Literal("error"),
  error: Schema.Struct({ code: Schema.String, message: Schema.String }),
})
const Addressing = Schema.Struct({ request_id: Schema.String })
const decodeAppended = Schema.decodeUnknownOption(Appending)
const decodePage = Schema.decodeUnknownOption(Reading)
const decodeRefused = Schema.decodeUnknownOption(Refusing)
const decodeAddress = Schema.decodeUnknownOption(Addressing)

interface Answer {
  readonly text: string
  readonly body: unknown
}

/** Reads an event with `decode`, or the refusal in it. */
const outcome = <A>(
  answer: Answer,
  decode: (body: unknown) => Option.Option<A>,
): Effect.Effect<A, RequestRefused | ClientFailed> => {
  const ok = decode(answer.body)
  if (Option.isSome(ok)) return Effect.succeed(ok.value)
  const refused = decodeRefused(answer.body)
  return Option.isSome(refused)
    ? Effect.fail(
        new RequestRefused({ code: refused.value.error.code, reason: refused.value.error.message, event: answer.text }),
      )
    : Effect.fail(new ClientFailed({ reason: "an answer is not an event of objectlog: do versions differ?" }))
}

/** As a timer takes it. */
const timerMillis = (timeout: Duration.Duration): number =>
  Math.max(1, Math.min(Duration.toMillis(timeout), 0x7fff_ffff))

const seconds = (timeout: Duration.Duration): string => `${Duration.toMillis(timeout) / 1000} s`

// --- The connection

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

const connectFailure = (error: unknown): string => {
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

interface Waiting {
  readonly receive: (answer: Answer) => void
  readonly fail: (error: ClientFailed) => void
}

const make = Effect.fnUntraced(function* (options: ClientOptions) {
  const timeout = Duration.fromInputUnsafe(options.timeout ?? timeoutDefault)
  const { connection, state } = yield* connected(options.servers, timeout)
  const js = jetstream(connection, { timeout: timerMillis(timeout) })
  const inbox = createInbox()
  const waiting = new Map<string, Waiting>()
  let requests = 0
  let heard = 0
  let lost: ClientFailed | undefined

  /** No answer can come any more. */
  const fail = (reason: string): void => {
    const failed = new ClientFailed({ reason })
    lost = failed
    for (const one of waiting.values()) one.fail(failed)
  }
  const receive = (message: Msg): void => {
    const text = message.string()
    let body: unknown
    try {
      body = JSON.parse(text)
    } catch {
      return
    }
    const address = decodeAddress(body)
    if (Option.isNone(address)) return
    heard += 1
    waiting.get(address.value.request_id)?.receive({ text, body })
  }
  const subscription = connection.subscribe(`${inbox}.*`, {
    callback: (error, message) => {
      if (error === null) receive(message)
      else fail(`the server refuses the answers: ${error.message}`)
    },
  })
  yield* Effect.addFinalizer(() => Effect.sync(() => subscription.unsubscribe()))
  const lostReason = () =>
    `the connection to the server is lost${state.complaint === undefined ? "" : `; the server says: ${state.complaint}`}`
  void connection.closed().then(() => fail(lostReason()))

  const unconfirmed = `not confirmed by the broker within ${seconds(timeout)}: it may be stored or not`

  /** Publishes at once, in the order of the calls; the promise tells whether the broker stored it, and never rejects. */
  const publish = (topic: string, body: string, messageId?: string): Promise<ClientFailed | undefined> =>
    js.publish(topic, body, messageId === undefined ? {} : { msgID: messageId }).then(
      () => undefined,
      (error: unknown) => {
        // Nobody took it. The library's own class for that, JetStreamNotEnabled, is not exported.
        const cause = error instanceof Error ? error.cause : undefined
        const nothingListens = cause instanceof errors.RequestError && cause.isNoResponders()
        const reason = nothingListens
          ? `not stored: no objectlog worker has ever been connected to this server, so that nothing stores the subject ${topic}`
          : error instanceof errors.TimeoutError
            ? state.connected
              ? unconfirmed
              : `${lostReason()}: the request may be stored or not`
            : error instanceof JetStreamApiError || error instanceof JetStreamError
              ? `not stored: the server refused the request on ${topic}: ${error.message}`
              : `can't publish on ${topic}: ${connectFailure(error)}`
        return new ClientFailed({ reason })
      },
    )

  /** The server closes the connection of a client that sends more than it takes, so that is not tried. */
  const tooLarge = (body: string, messageId: string | undefined): string | undefined => {
    const size = Buffer.byteLength(body) + (messageId === undefined ? 0 : Buffer.byteLength(messageId) + 64)
    const allowed = connection.info?.max_payload ?? Number.POSITIVE_INFINITY
    return size <= allowed ? undefined : `log: the request has ${size} bytes, the server takes ${allowed}`
  }

  /**
   * Waits for an answer; any message that arrives meanwhile starts the time-out anew, since work goes on. Where none comes
   * `unanswered` says what is known.
   */
  const within = <A, E>(wait: Effect.Effect<A, E>, unanswered: () => string): Effect.Effect<A, E | ClientFailed> =>
    Effect.suspend(() => {
      const before = heard
      return wait.pipe(
        Effect.timeoutOrElse({
          duration: timeout,
          orElse: (): Effect.Effect<A, E | ClientFailed> =>
            heard === before
              ? Effect.fail(new ClientFailed({ reason: state.connected ? unanswered() : lostReason() }))
              : within(wait, unanswered),
        }),
      )
    })

  const nextRequestId = (): string => `c${(requests++).toString(36)}`

  const send = (append: Append) =>
    Effect.sync((): Effect.Effect<Result.Result<Appended, RequestRefused>, ClientFailed> => {
      if (lost !== undefined) return Effect.fail(lost)
      const requestId = nextRequestId()
      const body = encodeAppendRequest(append, requestId, `${inbox}.${requestId}`)
      const reason = tooLarge(body, append.messageId)
      if (reason !== undefined) {
        const refusal = { code: "log_too_large", message: reason, requestId, id: append.id } as const
        const event = encodeError("append", refusal)
        return Effect.succeed(Result.fail(new RequestRefused({ code: refusal.code, reason, event })))
      }
      const answered = Deferred.makeUnsafe<Answer, ClientFailed>()
      let stored = false
      waiting.set(requestId, {
        receive: (answer) => Deferred.doneUnsafe(answered, Effect.succeed(answer)),
        fail: ({ reason: why }) => {
          const known = stored ? `stored by the broker, and not answered: ${why}` : `${why}: it may be stored or not`
          Deferred.doneUnsafe(answered, Effect.fail(new ClientFailed({ reason: known })))
        },
      })
      // The answer is what counts: it may come although the confirmation was lost, and before it.
      void publish(options.logsTopic, body, append.messageId).then((failed) => {
        if (failed === undefined) stored = true
        else Deferred.doneUnsafe(answered, Effect.fail(failed))
      })
      const unanswered = () =>
        stored
          ? `stored by the broker, and not answered within ${seconds(timeout)}: a worker appends it once one runs and the object's shard is up`
          : unconfirmed
      return within(Deferred.await(answered), unanswered).pipe(
        Effect.flatMap((answer) =>
          Effect.map(outcome(answer, decodeAppended), ({ position, seq, timestamp, duplicate }) =>
            Result.succeed({ position, seq, timestamp, duplicate: duplicate === true, event: answer.text }),
          ),
        ),
        Effect.catchTag("RequestRefused", (refused) => Effect.succeed(Result.fail(refused))),
        Effect.ensuring(Effect.sync(() => waiting.delete(requestId))),
      )
    })

  const append = <E, R>(
    appends: Stream.Stream<Append, E, R> | Iterable<Append>,
  ): Stream.Stream<Result.Result<Appended, RequestRefused>, ClientFailed | E, R> =>
    (Stream.isStream(appends) ? appends : Stream.fromIterable<Append>(appends)).pipe(
      // Published one after the other here, and awaited side by side there: that keeps the order.
      Stream.mapEffect(send),
      Stream.mapEffect((answer) => answer, { concurrency: window }),
    )

  /** One read request and the pages that answer it. */
  const readOnce = (
    read: Read,
    order: ReadOrder,
  ): Stream.Stream<Omit<Page, "page"> & { readonly bytes: number }, ClientFailed | RequestRefused> =>
    Stream.unwrap(
      Effect.gen(function* () {
        if (lost !== undefined) return yield* lost
        const requestId = nextRequestId()
        const queue = yield* Queue.unbounded<Result.Result<Answer, ClientFailed>>()
        yield* Effect.acquireRelease(
          Effect.sync(() =>
            waiting.set(requestId, {
              receive: (answer) => Queue.offerUnsafe(queue, Result.succeed(answer)),
              fail: (error) => Queue.offerUnsafe(queue, Result.fail(error)),
            }),
          ),
          () => Effect.sync(() => waiting.delete(requestId)),
        )
        const failed = yield* Effect.promise(() =>
          publish(options.queryTopic, encodeReadRequest(read, requestId, `${inbox}.${requestId}`)),
        )
        if (failed !== undefined) return yield* failed
        const merge = new PageMerge(order)
        const unanswered = () =>
          `stored by the broker, and not answered within ${seconds(timeout)}: no worker runs, or the object's shard is down`
        const nextPage = Effect.gen(function* () {
          for (;;) {
            const answer = yield* Effect.fromResult(yield* within(Queue.take(queue), unanswered))
            const page = merge.accept(yield* outcome(answer, decodePage))
            if (page !== undefined) return { ...page, bytes: answer.text.length }
          }
        })
        return Stream.paginate(undefined, () =>
          Effect.map(nextPage, (page) => [[page], page.last ? Option.none() : Option.some(undefined)] as const),
        )
      }),
    ).pipe(Stream.scoped)

  const query = (read: Read): Stream.Stream<Page, ClientFailed | RequestRefused> => {
    const order = orderOf(read)
    interface Step {
      readonly read: Read
      readonly entries: number
      readonly left: number
    }
    let number = 0
    const steps = (step: Step): Stream.Stream<Page, ClientFailed | RequestRefused> => {
      const limit = Math.min(step.entries, step.left)
      let [bytes, taken] = [0, 0]
      let following: Step | undefined
      return readOnce({ ...step.read, limit }, order).pipe(
        Stream.map(({ bytes: size, ...page }): Page => {
          bytes += size
          taken += page.entries.length
          const left = step.left - taken
          if (!page.last || page.next === undefined || left <= 0) return { ...page, page: number++ }
          const mean = Math.max(1, bytes / Math.max(1, taken))
          const entries = Math.min(step.entries * 8, readEntriesMax, Math.max(1, Math.floor(readBytes / mean)))
          const after: Read = { ...step.read, after: page.next, afterPosition: undefined, order: undefined }
          following = { read: after, entries, left }
          return { page: number++, last: false, entries: page.entries }
        }),
        Stream.concat(Stream.suspend(() => (following === undefined ? Stream.empty : steps(following)))),
      )
    }
    return Stream.suspend(() => {
      number = 0
      return steps({ read, entries: firstReadEntries, left: read.limit ?? Number.MAX_SAFE_INTEGER })
    })
  }

  return { append, query }
})

export class Client extends Context.Service<
  Client,
  {
    /**
     * Publishes in the order given, up to 256 ahead of their answers, and yields each one's outcome, in the same order.
     * A refused append is an outcome; the stream goes on after it.
     */
    readonly append: <E = never, R = never>(
      appends: Stream.Stream<Append, E, R> | Iterable<Append>,
    ) => Stream.Stream<Result.Result<Appended, RequestRefused>, ClientFailed | E, R>
    /**
     * Reads a log as consecutive pages, each entry once. A long log is read in several requests, each when the pages
     * before were taken, so that memory stays bounded; page numbers run through.
     */
    readonly query: (read: Read) => Stream.Stream<Page, ClientFailed | RequestRefused>
  }
>()("objectlog/cli/Client") {
  /** Connects; fails after 5 s when no server can be reached. */
  static readonly layer = (options: ClientOptions): Layer.Layer<Client, ClientFailed> =>
    Layer.effect(Client, make(options))
}
