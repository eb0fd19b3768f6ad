/** Follows a stream from its beginning, through every outage of the broker: each message once, in its order. */
import { DeliverPolicy, jetstream, jetstreamManager } from "@nats-io/jetstream"
import { Effect, Schedule, type Scope } from "effect"
import { connectTo } from "../../bench/servers/connectTo.ts"

export interface Message {
  readonly seq: number
  readonly nanos: bigint
  readonly subject: string
  readonly text: () => string
  readonly header: (name: string) => string
}

export interface Follower {
  /** The number of the last message that was handled. */
  readonly last: () => number
  /** Messages that were gone before they were seen. */
  readonly missed: () => number
  /** Waits until all that the stream holds now is handled. */
  readonly caughtUp: Effect.Effect<void>
}

/** Without a message for so long, a new consumer takes over from where the last one stood. */
const silenceMillis = 8_000
const pauseMillis = 200

export const follow = Effect.fnUntraced(function* (
  servers: string,
  stream: string,
  handle: (message: Message) => void,
): Effect.fn.Return<Follower, never, Scope.Scope> {
  const connection = yield* Effect.acquireRelease(
    Effect.promise(() => connectTo(servers, { maxReconnectAttempts: -1, reconnectTimeWait: 100 })),
    (open) => Effect.promise(() => open.close()),
  )
  let last = 0
  let missed = 0
  let lastSign = Date.now()

  const consume = Effect.callback<void, unknown>((resume) => {
    let stop = () => {}
    let stopped = false
    const run = async () => {
      const consumer = await jetstream(connection, { timeout: 2_000 }).consumers.get(stream, {
        deliver_policy: DeliverPolicy.StartSequence,
        opt_start_seq: last + 1,
      })
      const messages = await consumer.consume({ max_messages: 2_000 })
      stop = () => messages.stop()
      if (stopped) return stop()
      for await (const message of messages) {
        if (stopped) return
        lastSign = Date.now()
        if (message.seq <= last) continue
        missed += message.seq - last - 1
        last = message.seq
        handle({
          seq: message.seq,
          nanos: message.timestampNanos,
          subject: message.subject,
          text: () => message.string(),
          header: (name) => message.headers?.get(name) ?? "",
        })
      }
    }
    run().then(
      () => resume(Effect.void),
      (error: unknown) => resume(Effect.fail(error)),
    )
    return Effect.sync(() => {
      stopped = true
      stop()
    })
  })
  const silent = Effect.sync(() => Date.now() - lastSign > silenceMillis).pipe(
    Effect.delay("500 millis"),
    Effect.repeat({ until: (isSilent) => isSilent }),
  )
  yield* Effect.sync(() => (lastSign = Date.now())).pipe(
    Effect.andThen(Effect.raceFirst(Effect.ignore(consume), silent)),
    Effect.andThen(Effect.sleep(pauseMillis)),
    Effect.forever,
    Effect.forkScoped,
  )

  const target = Effect.tryPromise(async () => {
    const manager = await jetstreamManager(connection, { checkAPI: false, timeout: 2_000 })
    return (await manager.streams.info(stream)).state.last_seq
  }).pipe(Effect.retry(Schedule.spaced(pauseMillis)), Effect.orDie)
  return {
    last: () => last,
    missed: () => missed,
    caughtUp: Effect.flatMap(target, (seq) =>
      Effect.sync(() => last >= seq).pipe(
        Effect.repeat({ until: (done) => done, schedule: Schedule.spaced("50 millis") }),
        Effect.asVoid,
      ),
    ),
  }
})
