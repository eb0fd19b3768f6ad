/** A client of objectlog: it knows the broker and the contract, and no database. */
import { Context, Deferred, Duration, Effect, Exit, Layer, Option, Queue, Result, Schema, Scope, Stream } from "effect"
import { encodeError, type Entry, type Event } from "../contract/Event.ts"
import { type Append, encodeAppendRequest, encodeReadRequest, type Read } from "../contract/Request.ts"
import { ClientFailed, connected, seconds, timeoutDefault } from "./connection.ts"
import { type MergedPage, orderOf, PageMerge, type ReadOrder } from "./PageMerge.ts"
import { type Answer, type Listener, makeRequests, type Requests } from "./Requests.ts"

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

/** Some entries of a log. */
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

/**
 * A core subscription has no backpressure: what a reader does not take piles up in memory. A long read is therefore
 * made of reads of about this size, each asked for when the one before was taken.
 */
const readBytes = 8 * 1024 * 1024
const firstReadEntries = 256
const readEntriesMax = 50_000

/** The event that answers a request, where it is of that type; else the refusal in it. */
const expectEvent = <T extends "append" | "query">(
  { event, text }: Answer,
  type: T,
): Effect.Effect<Extract<Event, { readonly type: T }>, RequestRefused | ClientFailed> => {
  if (event.type === type) return Effect.succeed(event as Extract<Event, { readonly type: T }>)
  return event.type === "refused"
    ? Effect.fail(new RequestRefused({ code: event.code, reason: event.reason, event: text }))
    : Effect.fail(new ClientFailed({ reason: "an answer is not an event of objectlog: do versions differ?" }))
}

/** Why a request can't be sent: the server closes the connection of a client that sends more than it takes. */
const tooLarge = (body: string, messageId: string | undefined, allowed: number): string | undefined => {
  const size = Buffer.byteLength(body) + (messageId === undefined ? 0 : Buffer.byteLength(messageId) + 64)
  return size <= allowed ? undefined : `log: the request has ${size} bytes, the server takes ${allowed}`
}

type Outcome = Result.Result<Appended, RequestRefused>

/** Publishes an append; what is given waits for its outcome. */
const send = Effect.fnUntraced(function* (
  requests: Requests,
  topic: string,
  timeout: Duration.Duration,
  append: Append,
): Effect.fn.Return<Effect.Effect<Outcome, ClientFailed>, ClientFailed> {
  const answered = Deferred.makeUnsafe<Answer, ClientFailed>()
  let isStored = false
  const { close, id, replyTo } = yield* requests.open({
    receive: (answer) => Deferred.doneUnsafe(answered, Effect.succeed(answer)),
    fail: ({ reason }) => {
      const known = isStored
        ? `stored by the broker, and not answered: ${reason}`
        : `${reason}: it may be stored or not`
      Deferred.doneUnsafe(answered, Effect.fail(new ClientFailed({ reason: known })))
    },
  })
  const body = encodeAppendRequest(append, id, replyTo)
  const problem = tooLarge(body, append.messageId, requests.maxPayload())
  if (problem !== undefined) {
    yield* close
    const code = "log_too_large"
    const event = encodeError("append", { code, message: problem, requestId: id, id: append.id })
    return Effect.succeed(Result.fail(new RequestRefused({ code, reason: problem, event })))
  }
  // The answer is what counts: it may come although the confirmation was lost, and before it.
  void requests.publish(topic, body, append.messageId).then((failed) => {
    if (failed === undefined) isStored = true
    else Deferred.doneUnsafe(answered, Effect.fail(failed))
  })
  const unanswered = () =>
    isStored
      ? `stored by the broker, and not answered within ${seconds(timeout)}: a worker appends it once one runs and the object's shard is up`
      : requests.unconfirmed
  return requests.within(Deferred.await(answered), unanswered).pipe(
    Effect.flatMap((answer) =>
      Effect.map(expectEvent(answer, "append"), ({ duplicate, position, seq, timestamp }) =>
        Result.succeed({ position, seq, timestamp, duplicate, event: answer.text }),
      ),
    ),
    Effect.catchTag("RequestRefused", (refused) => Effect.succeed(Result.fail(refused))),
    Effect.ensuring(close),
  )
})

type SizedPage = MergedPage & { readonly bytes: number }

/** Publishes a read, of which is heard until the scope closes; what is given waits for its next page. */
const ask = Effect.fnUntraced(function* (
  requests: Requests,
  topic: string,
  timeout: Duration.Duration,
  read: Read,
  order: ReadOrder,
): Effect.fn.Return<Effect.Effect<SizedPage, ClientFailed | RequestRefused>, ClientFailed, Scope.Scope> {
  const queue = yield* Queue.unbounded<Result.Result<Answer, ClientFailed>>()
  const listener: Listener = {
    receive: (answer) => Queue.offerUnsafe(queue, Result.succeed(answer)),
    fail: (error) => Queue.offerUnsafe(queue, Result.fail(error)),
  }
  const { id, replyTo } = yield* Effect.acquireRelease(requests.open(listener), ({ close }) => close)
  const failed = yield* Effect.promise(() => requests.publish(topic, encodeReadRequest(read, id, replyTo)))
  if (failed !== undefined) return yield* failed
  const merge = new PageMerge(order)
  const unanswered = () =>
    `stored by the broker, and not answered within ${seconds(timeout)}: no worker runs, or the object's shard is down`
  return Effect.gen(function* () {
    for (;;) {
      const answer = yield* Effect.fromResult(yield* requests.within(Queue.take(queue), unanswered))
      const page = merge.accept(yield* expectEvent(answer, "query"))
      if (page !== undefined) return { ...page, bytes: answer.text.length }
    }
  })
})

/** How far a read has come that is made of several requests. */
interface Progress {
  /** What the present request reads, but for its limit. */
  readonly read: Read
  /** The number of the next page. */
  readonly page: number
  /** Entries that the present request asks for, and that the whole read may bring from it on. */
  readonly entries: number
  readonly left: number
  /** What the present request has brought so far. */
  readonly taken: number
  readonly bytes: number
}

/** A page as it is handed on, and how far the read is after it; `undefined` at its end. */
const advance = (before: Progress, page: SizedPage): readonly [Page, Progress | undefined] => {
  const { bytes: size, ...merged } = page
  const [bytes, taken] = [before.bytes + size, before.taken + page.entries.length]
  const now = { ...before, page: before.page + 1, bytes, taken }
  const left = before.left - taken
  const { last, next } = page
  const isEnd = last && (next === undefined || left <= 0)
  if (isEnd || !last) return [{ ...merged, page: before.page }, isEnd ? undefined : now]
  const mean = Math.max(1, bytes / Math.max(1, taken))
  const entries = Math.min(before.entries * 8, readEntriesMax, Math.max(1, Math.floor(readBytes / mean)))
  const read = { ...before.read, after: next, afterPosition: undefined, order: undefined }
  return [
    { page: before.page, last: false, entries: page.entries },
    { read, page: now.page, entries, left, taken: 0, bytes: 0 },
  ]
}

const make = Effect.fnUntraced(function* (options: ClientOptions) {
  const timeout = Duration.fromInputUnsafe(options.timeout ?? timeoutDefault)
  const { connection, state } = yield* connected(options.servers, timeout)
  const requests = yield* makeRequests(connection, state, timeout)
  const { logsTopic, queryTopic } = options

  const append = <E, R>(
    appends: Stream.Stream<Append, E, R> | Iterable<Append>,
  ): Stream.Stream<Outcome, ClientFailed | E, R> =>
    (Stream.isStream(appends) ? appends : Stream.fromIterable<Append>(appends)).pipe(
      // Published one after the other here, and awaited side by side there: that keeps the order.
      Stream.mapEffect((one) => send(requests, logsTopic, timeout, one)),
      Stream.mapEffect((outcome) => outcome, { concurrency: window }),
    )

  const query = (read: Read): Stream.Stream<Page, ClientFailed | RequestRefused> => {
    const order = orderOf(read)
    const first: Progress = {
      read,
      page: 0,
      entries: firstReadEntries,
      left: read.limit ?? Number.MAX_SAFE_INTEGER,
      taken: 0,
      bytes: 0,
    }
    return Stream.unwrap(
      Effect.gen(function* () {
        const scope = yield* Effect.scope
        /** A request is made when its first page is asked for, and forgotten with its last one. */
        const begin = Effect.fnUntraced(function* ({ entries, left, read: next }: Progress) {
          const own = yield* Scope.fork(scope)
          const limited = { ...next, limit: Math.min(entries, left) }
          const nextPage = yield* Scope.provide(ask(requests, queryTopic, timeout, limited, order), own)
          return { nextPage, end: Scope.close(own, Exit.void) }
        })
        type Request = Effect.Success<ReturnType<typeof begin>>
        const start: { readonly progress: Progress; readonly request: Request | undefined } = {
          progress: first,
          request: undefined,
        }
        return Stream.paginate(start, ({ progress, request: underWay }) =>
          Effect.gen(function* () {
            const request = underWay ?? (yield* begin(progress))
            const received = yield* request.nextPage
            const [page, following] = advance(progress, received)
            if (received.last) yield* request.end
            const state =
              following === undefined
                ? Option.none()
                : Option.some({ progress: following, request: received.last ? undefined : request })
            return [[page], state] as const
          }),
        )
      }),
    ).pipe(Stream.scoped)
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
>()("objectlog/client/Client") {
  /** Connects; fails after 5 s when no server can be reached. */
  static readonly layer = (options: ClientOptions): Layer.Layer<Client, ClientFailed> =>
    Layer.effect(Client, make(options))
}
