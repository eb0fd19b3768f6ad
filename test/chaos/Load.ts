/** A constant load of core publishes, and the delay of each from its publish to its event. */
import { Effect, type Scope } from "effect"
import { connectTo } from "../../bench/servers/connectTo.ts"

/** What happened to one group of appends in a stretch of time. */
export interface Stretch {
  readonly millis: number
  /** Events of the group. */
  readonly events: number
  /** Of those events, in milliseconds and ascending order. */
  readonly delays: ReadonlyArray<number>
}

export interface Load {
  /** Appends that were sent, and those of a group that have no event yet. */
  readonly sent: () => number
  readonly open: (group: number) => number
  /** Changes what is sent from now on: so many a second, each to an object that this picks. */
  readonly set: (rate: number, pick: () => number) => void
  /** What happened to each group since the last call. */
  readonly stretch: () => ReadonlyArray<Stretch>
}

const tickMillis = 5

/** `groupOf` puts objects in `groups` groups. Room for `most` appends in all. */
export const startLoad = Effect.fnUntraced(function* (options: {
  readonly servers: string
  readonly ids: ReadonlyArray<bigint>
  readonly groups: number
  readonly groupOf: (object: number) => number
  readonly most: number
  readonly text: string
}): Effect.fn.Return<Load, never, Scope.Scope> {
  const { groupOf, groups, ids, most } = options
  const connection = yield* Effect.acquireRelease(
    Effect.promise(() => connectTo(options.servers, { maxReconnectAttempts: -1 })),
    (open) => Effect.promise(() => open.close()),
  )
  const log = JSON.stringify(options.text)
  // Typed arrays: millions of appends must not become millions of objects of this process.
  const sentAt = new Float64Array(most)
  const objectOf = new Uint32Array(most)
  const answered = new Uint8Array(most)
  const open = new Float64Array(groups)
  let sent = 0
  let delays: Array<Array<number>> = []
  let since = performance.now()
  const reset = () => {
    delays = Array.from({ length: groups }, () => [])
    since = performance.now()
  }
  reset()

  const subscription = connection.subscribe("response", {
    callback: (_, message) => {
      const number = Number(/"request_id":"(\d+)"\}$/.exec(message.string())?.[1])
      if (!(number < sent) || answered[number] === 1) return
      answered[number] = 1
      const group = groupOf(objectOf[number]!)
      open[group]!--
      delays[group]!.push(performance.now() - sentAt[number]!)
    },
  })
  yield* Effect.addFinalizer(() => Effect.sync(() => subscription.unsubscribe()))

  let rate = 0
  let pick = () => 0
  let allowed = 0
  let lastTick = performance.now()
  const tick = Effect.sync(() => {
    const now = performance.now()
    allowed = Math.min(allowed + ((now - lastTick) * rate) / 1_000, rate)
    lastTick = now
    for (; allowed >= 1 && sent < most; allowed--) {
      const number = sent++
      const object = pick()
      objectOf[number] = object
      sentAt[number] = performance.now()
      open[groupOf(object)]!++
      connection.publish("logs", `{"id":${ids[object]},"log":${log},"request_id":"${number}"}`)
    }
  })
  yield* tick.pipe(Effect.andThen(Effect.sleep(tickMillis)), Effect.forever, Effect.forkScoped)
  return {
    sent: () => sent,
    open: (group) => open[group]!,
    set: (nextRate, nextPick) => {
      rate = nextRate
      pick = nextPick
    },
    stretch: () => {
      const millis = performance.now() - since
      const found = delays.map((all) => ({ millis, events: all.length, delays: all.toSorted((a, b) => a - b) }))
      reset()
      return found
    },
  }
})
