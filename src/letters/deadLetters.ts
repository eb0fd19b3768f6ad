/** The dead-letter stream for an operator: letters are read, tried again, and deleted. */
import { AckPolicy, DeliverPolicy, type JetStreamManager } from "@nats-io/jetstream"
import { createInbox, type Msg, type NatsConnection } from "@nats-io/transport-node"
import { Effect, Option, Schema, type Scope, Stream } from "effect"
import { createHash } from "node:crypto"
import { BrokerUnavailable } from "../broker/Broker.ts"
import { parseAckSubject } from "../nats/ackSubject.ts"
import { hasNoMessages, isConflict, isExpired, noResponders } from "../nats/status.ts"
import { watchConnection } from "../nats/connection.ts"
import { blockText, headerText, isPlain } from "../nats/headers.ts"
import { type Letter, LetterAssembly, type StoredMessage } from "./Letter.ts"
import { attempt } from "../broker/provision.ts"
import { Incoming } from "../nats/Incoming.ts"
import { Outgoing } from "../nats/Outgoing.ts"
import { makePublisher, publishMade, type Message } from "../nats/publish.ts"
import { publishFailed } from "../broker/publishing.ts"
import { retryMessage } from "../broker/parked.ts"

/** Messages and bytes of one request; it must take the largest message at least. */
const batchMessages = 500
const batchBytes = 8 * 1024 * 1024

/** How long a request stays open, and how long without any answer is too long, in milliseconds. */
const expiresMillis = 2_000
const silenceMillis = 10_000

/** A letter's parts are stored within a moment; so much before the given time a look for them begins, in nanoseconds. */
const partsSpread = 60_000_000_000n

export interface Selection {
  /** Exactly this subject of the request. */
  readonly subject?: string | undefined
  /** Refused at or after this time, in nanoseconds. */
  readonly since?: bigint | undefined
  /** From and up to these messages of the stream. */
  readonly from?: number | undefined
  readonly upTo?: number | undefined
}

/** A letter can't be tried again as it is. */
export class NotRetried extends Schema.TaggedError<NotRetried>()("NotRetried", { reason: Schema.String }) {
  override get message(): string {
    return this.reason
  }
}

/** The subjects of the contract. */
export interface Subjects {
  readonly logsTopic: string
  readonly queryTopic: string
  readonly deadTopic: string
}

export interface DeadLetters {
  /** Letters that are there now, oldest first. */
  readonly read: (selection?: Selection) => Stream.Stream<Letter, BrokerUnavailable>
  /** Those of these numbers that exist; a number may be that of any part. */
  readonly find: (seqs: ReadonlyArray<number>) => Effect.Effect<ReadonlyArray<Letter>, BrokerUnavailable>
  /**
   * Has the request processed again, with another payload where one is given, and deletes the letter once the broker has
   * stored that. An append keeps its stamp, so a repetition makes no second entry.
   */
  readonly retry: (letter: Letter, payload?: Uint8Array) => Effect.Effect<void, BrokerUnavailable | NotRetried>
  /** Deletes a letter with all its parts; succeeds where it is gone already. */
  readonly remove: (letter: Letter) => Effect.Effect<void, BrokerUnavailable>
}

const toStored = (message: Msg): StoredMessage & { readonly pending: number } => {
  const { pending, seq, timestamp } = parseAckSubject(message.reply!)
  return {
    seq,
    timestamp,
    pending,
    subject: message.subject,
    headers: headerText(message, message.reply!.length),
    payload: message.data,
  }
}

/** A consumer of its own, in the server's memory, gone with the scope or a minute after its reader. */
const openConsumer = Effect.fnUntraced(function* (
  jsm: JetStreamManager,
  stream: string,
  deadTopic: string,
  { from, since, subject }: Selection,
) {
  const start = since === undefined ? undefined : new Date(Number((since - partsSpread) / 1_000_000n))
  return yield* Effect.acquireRelease(
    attempt("read dead letters", () =>
      jsm.consumers.add(stream, {
        ack_policy: AckPolicy.None,
        filter_subject: subject === undefined ? `${deadTopic}.>` : `${deadTopic}.${subject}`,
        inactive_threshold: 60_000_000_000,
        mem_storage: true,
        ...(from !== undefined
          ? { deliver_policy: DeliverPolicy.StartSequence, opt_start_seq: Math.max(1, from) }
          : start !== undefined && start.getTime() > 0
            ? { deliver_policy: DeliverPolicy.StartTime, opt_start_time: start.toISOString() }
            : { deliver_policy: DeliverPolicy.All }),
      }),
    ),
    (info) => attempt("delete consumer", () => jsm.consumers.delete(stream, info.name)).pipe(Effect.ignore),
  )
})

/** Asks for messages once; what came, and whether there is more. */
const fetch = (
  connection: NatsConnection,
  stream: string,
  consumer: string,
  batch: number,
): Effect.Effect<{ readonly messages: ReadonlyArray<StoredMessage>; readonly ended: boolean }, BrokerUnavailable> =>
  Effect.callback((resume) => {
    const inbox = createInbox()
    const messages: Array<StoredMessage> = []
    const finish = (ended: boolean, failure?: string) => {
      clearTimeout(timer)
      subscription.unsubscribe()
      resume(
        failure === undefined
          ? Effect.succeed({ messages, ended })
          : Effect.fail(new BrokerUnavailable({ operation: "read dead letters", cause: new Error(failure) })),
      )
    }
    const timer = setTimeout(() => finish(true, `no answer within ${silenceMillis / 1_000} s`), silenceMillis)
    const subscription = connection.subscribe(inbox, {
      callback: (error, message) => {
        if (error !== null) return finish(true, error.message)
        if (message.subject === inbox) {
          const status = message.headers ?? noResponders
          // What is left comes with the next request.
          return finish(
            false,
            hasNoMessages(status) || isExpired(status) || isConflict(status)
              ? undefined
              : `the server answers ${status.code} ${status.description}`,
          )
        }
        const { pending, ...stored } = toStored(message)
        messages.push(stored)
        if (pending === 0 || messages.length === batch) finish(pending === 0)
      },
    })
    const body = {
      batch,
      max_bytes: Math.max(batchBytes, 2 * (connection.info?.max_payload ?? 0)),
      expires: expiresMillis * 1_000_000,
    }
    connection.publish(`$JS.API.CONSUMER.MSG.NEXT.${stream}.${consumer}`, JSON.stringify(body), { reply: inbox })
    return Effect.sync(() => {
      clearTimeout(timer)
      subscription.unsubscribe()
    })
  })

/** The message that has a letter's request processed again. */
export const retried = (
  letter: Letter,
  payload: Uint8Array,
  { logsTopic, queryTopic }: Subjects,
  maxPayload: number,
): Message | NotRetried => {
  const { code, headers, missingParts, refusedAt, seq, stamp, subject } = letter
  if (stamp === undefined) return new NotRetried({ reason: `is ${code}: objectlog did not write it` })
  if (missingParts > 0 && payload === letter.payload) {
    return new NotRetried({ reason: `${missingParts} of its parts are missing` })
  }
  // The same for each repetition with this payload: then the broker sees that it has the message already.
  const hash = payload === letter.payload ? "" : `-${createHash("sha256").update(payload).digest("hex").slice(0, 16)}`
  const outcome = `${seq}-${refusedAt}${hash}`
  const tooLarge = new NotRetried({
    reason: `the request and the headers of a retry exceed the ${maxPayload} bytes that the server takes`,
  })
  if (subject === logsTopic) {
    return (
      retryMessage(logsTopic, { subject, ...stamp, payload, headers: () => headers }, outcome, maxPayload) ?? tooLarge
    )
  }
  if (subject !== queryTopic) {
    return new NotRetried({
      reason: `its subject ${subject} is neither that of appends (${logsTopic}) nor that of reads (${queryTopic})`,
    })
  }
  // A read is asked anew. What the broker was told then does not hold any more, and nothing acts on an odd header.
  const own = headers.filter((header) => isPlain(header) && !/^nats-/i.test(header[0]))
  const all = [["Nats-Msg-Id", outcome] as const, ...own]
  const block = blockText(all)
  if (payload.byteLength + block.length > maxPayload) return tooLarge
  return { subject, payload, headers: block, copy: undefined }
}

/** The dead letters of a server; `undefined` where no stream keeps any. */
export const openDeadLetters = Effect.fnUntraced(function* (
  connection: NatsConnection,
  jsm: JetStreamManager,
  subjects: Subjects,
): Effect.fn.Return<DeadLetters | undefined, BrokerUnavailable, Scope.Scope> {
  const { deadTopic } = subjects
  const info = yield* attempt("find stream", async () => {
    for await (const found of jsm.streams.list(`${deadTopic}.>`)) return found
    return undefined
  })
  if (info === undefined) return undefined
  const stream = info.config.name

  const read = (selection: Selection = {}): Stream.Stream<Letter, BrokerUnavailable> =>
    Stream.unwrap(
      Effect.gen(function* () {
        const { state } = yield* attempt("stream info", () => jsm.streams.info(stream))
        const upTo = Math.min(state.last_seq, selection.upTo ?? Number.MAX_SAFE_INTEGER)
        const consumer = yield* openConsumer(jsm, stream, deadTopic, selection)
        const assembly = new LetterAssembly()
        const isChosen = (letter: Letter) => selection.since === undefined || letter.refusedAt >= selection.since
        const next = Effect.fnUntraced(function* (pending: number) {
          if (pending === 0) return [assembly.rest().filter(isChosen), Option.none<number>()] as const
          const { ended, messages } = yield* fetch(connection, stream, consumer.name, Math.min(batchMessages, pending))
          const letters = messages
            .filter(({ seq }) => seq <= upTo)
            .flatMap((message) => assembly.accept(message) ?? [])
            .filter(isChosen)
          const passed = (messages.at(-1)?.seq ?? 0) >= upTo
          // Others may have deleted what was still to come.
          const left =
            ended || passed
              ? 0
              : (yield* attempt("consumer info", () => jsm.consumers.info(stream, consumer.name))).num_pending
          return [letters, Option.some(left)] as const
        })
        return Stream.paginate(consumer.num_pending, next)
      }),
    ).pipe(Stream.scoped)

  const find = Effect.fnUntraced(function* (seqs: ReadonlyArray<number>) {
    const wanted = new Set(seqs)
    const isWanted = (letter: Letter) => letter.seqs.some((seq) => wanted.has(seq))
    const among = (selection: Selection) => Stream.runCollect(Stream.filter(read(selection), isWanted))
    const near = yield* among({ from: Math.min(...seqs), upTo: Math.max(...seqs) })
    // Its other parts may be anywhere.
    return near.some((letter) => letter.missingParts > 0) ? yield* among({}) : near
  })

  const remove = (letter: Letter) =>
    Effect.forEach(
      letter.seqs,
      (seq) =>
        attempt(`delete ${seq}`, async () => {
          try {
            await jsm.streams.deleteMessage(stream, seq)
          } catch (error) {
            // What is gone already is refused too, with a code that also stands for other failures.
            if ((await jsm.streams.getMessage(stream, { seq })) !== null) throw error
          }
        }),
      { discard: true },
    )

  const state = yield* watchConnection(connection, () => Effect.void)
  const publish = yield* makePublisher(
    connection,
    new Outgoing(connection),
    new Incoming(connection),
    state,
    publishFailed,
  )
  const retry = Effect.fnUntraced(function* (letter: Letter, payload: Uint8Array = letter.payload) {
    const maxPayload = connection.info?.max_payload ?? Number.MAX_SAFE_INTEGER
    const message = retried(letter, payload, subjects, maxPayload)
    if (message instanceof NotRetried) return yield* message
    yield* publishMade(publish, [message])
    yield* remove(letter)
  })

  return { read, find, retry, remove }
})
