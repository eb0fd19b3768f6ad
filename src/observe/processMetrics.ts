/**
 * Metrics of the process, under the names that other programs use too: `process_*`, `nodejs_*`, and the delay of the event
 * loop. All are read when somebody asks.
 */
import { Effect, Layer, Metric } from "effect"
import { readdirSync, readFileSync } from "node:fs"
import { constants, monitorEventLoopDelay, performance, PerformanceObserver } from "node:perf_hooks"
import { version } from "../config/version.ts"

/**
 * How often the event loop is probed, in milliseconds. Each probe wakes the process: ten milliseconds, Node's default,
 * take 0.6 % of a core when it has nothing to do, fifty take 0.15 %.
 */
const probeMillis = 50

/** How long quantiles of the delay look back: over this time at least, and over the time between two scrapes. */
const windowMillis = 10_000

const none = () => undefined

/** Registers a metric until the scope closes. */
const register = <Input, State>(metric: Metric.Metric<Input, State>, get: () => State) =>
  Effect.acquireRelease(
    Effect.map(Effect.context<never>(), (context) =>
      Metric.registerUnsafe(metric, context, { get, update: none, modify: none }),
    ),
    (registration) => Effect.sync(registration.remove),
  ).pipe(Effect.asVoid)

const gauge = (
  name: string,
  description: string,
  read: () => number,
  attributes: Readonly<Record<string, string>> = {},
) => register(Metric.gauge(name, { description, attributes }), () => ({ value: read() }))

const counter = (name: string, description: string, read: () => number) =>
  register(Metric.counter(name, { description }), () => ({ count: read(), incremental: true }))

const processGauges = Effect.gen(function* () {
  yield* counter("process_cpu_seconds_total", "User and system time of the process.", () => {
    const { system, user } = process.cpuUsage()
    return (user + system) / 1e6
  })
  yield* gauge("process_resident_memory_bytes", "Resident memory.", () => process.memoryUsage.rss())
  yield* gauge(
    "process_start_time_seconds",
    "When the process started, in seconds since 1970.",
    () => performance.timeOrigin / 1e3,
  )
  // Only where the system tells them.
  if (openFiles() !== undefined) {
    yield* gauge("process_open_fds", "Open file descriptors.", () => openFiles() ?? Number.NaN)
  }
  const most = mostFiles()
  if (most !== undefined) yield* gauge("process_max_fds", "Most file descriptors that may be open.", () => most)
})

const openFiles = (): number | undefined => {
  try {
    // Less the one that reads the folder.
    return readdirSync("/proc/self/fd").length - 1
  } catch {
    return undefined
  }
}

const mostFiles = (): number | undefined => {
  try {
    const soft = /^Max open files\s+(\d+)/m.exec(readFileSync("/proc/self/limits", "utf8"))?.[1]
    return soft === undefined ? undefined : Number(soft)
  } catch {
    return undefined
  }
}

const heapGauges = Effect.gen(function* () {
  const memory = process.memoryUsage
  yield* gauge("nodejs_heap_size_used_bytes", "Used heap of JavaScript.", () => memory().heapUsed)
  yield* gauge("nodejs_heap_size_total_bytes", "Heap of JavaScript.", () => memory().heapTotal)
  yield* gauge("nodejs_external_memory_bytes", "Memory outside of the heap, such as buffers.", () => memory().external)
  yield* gauge("nodejs_version_info", "The version of Node; always 1.", () => 1, { version: process.version })
})

const kindsOfCollection = new Map<number, string>([
  [constants.NODE_PERFORMANCE_GC_MINOR, "minor"],
  [constants.NODE_PERFORMANCE_GC_MAJOR, "major"],
  [constants.NODE_PERFORMANCE_GC_INCREMENTAL, "incremental"],
  [constants.NODE_PERFORMANCE_GC_WEAKCB, "weakcb"],
])

const kindOf = (entry: object): string =>
  ("detail" in entry && hasKind(entry.detail) ? kindsOfCollection.get(entry.detail.kind) : undefined) ?? "unknown"

const hasKind = (detail: unknown): detail is { readonly kind: number } =>
  typeof detail === "object" && detail !== null && "kind" in detail && typeof detail.kind === "number"

const collectionBounds = [0.001, 0.01, 0.1, 1, 5]

const garbageCollections = Effect.gen(function* () {
  const seen = new Map(
    Array.from(kindsOfCollection.values(), (kind) => [
      kind,
      { count: 0, sum: 0, below: collectionBounds.map(() => 0) },
    ]),
  )
  yield* Effect.acquireRelease(
    Effect.sync(() => {
      const observer = new PerformanceObserver((list) => {
        for (const entry of list.getEntries()) {
          const { duration } = entry
          const kind = seen.get(kindOf(entry))
          if (kind === undefined) continue
          kind.count++
          kind.sum += duration / 1e3
          collectionBounds.forEach((bound, i) => (kind.below[i]! += duration / 1e3 <= bound ? 1 : 0))
        }
      })
      observer.observe({ entryTypes: ["gc"] })
      return observer
    }),
    (observer) => Effect.sync(() => observer.disconnect()),
  )
  for (const [kind, state] of seen) {
    const description = "Time of garbage collections, by kind."
    const options = { description, boundaries: collectionBounds, attributes: { kind } }
    yield* register(Metric.histogram("nodejs_gc_duration_seconds", options), () => ({
      count: state.count,
      sum: state.sum,
      buckets: collectionBounds.map((bound, i) => [bound, state.below[i]!] satisfies [number, number]),
      min: Number.NaN,
      max: Number.NaN,
    }))
  }
})

const quantiles = [0.5, 0.99, 1] as const

/** A summary, since only a summary may have quantiles: of the last window, and sum and count of all probes. */
const eventLoopDelay = Effect.gen(function* () {
  const probes = yield* Effect.acquireRelease(
    Effect.sync(() => {
      const histogram = monitorEventLoopDelay({ resolution: probeMillis })
      histogram.enable()
      return histogram
    }),
    (histogram) => Effect.sync(() => histogram.disable()),
  )
  // Node records the time from probe to probe; what is beyond the planned time is delay.
  const delay = (nanos: number) => Math.max(0, nanos / 1e9 - probeMillis / 1e3)
  const total = { count: 0, sum: 0 }
  let sum = 0
  const here = () => ({ count: probes.count, sum: probes.count === 0 ? 0 : probes.count * delay(probes.mean) })
  let windowStart = performance.now()
  let last: ReadonlyArray<readonly [number, number]> | undefined
  const state = () => {
    if (last === undefined || performance.now() - windowStart >= windowMillis) {
      last = quantiles.map((q) => [
        q,
        probes.count === 0 ? 0 : delay(q === 1 ? probes.max : probes.percentile(q * 100)),
      ])
      const window = here()
      total.count += window.count
      total.sum += window.sum
      probes.reset()
      windowStart = performance.now()
    }
    const window = here()
    // Timers that run a little early must not make it fall.
    sum = Math.max(sum, total.sum + window.sum)
    return { quantiles: last, count: total.count + window.count, sum, min: Number.NaN, max: Number.NaN }
  }
  yield* register(
    Metric.summary("objectlog_event_loop_delay_seconds", {
      description: "How late the event loop ran a timer, in the last ten seconds or since the last scrape.",
      maxAge: windowMillis,
      maxSize: 0,
      quantiles,
    }),
    state,
  )
})

/** Puts them in the metric registry of the context in which the layer is built. */
export const processMetrics: Layer.Layer<never> = Layer.effectDiscard(
  Effect.all(
    [
      gauge("objectlog_build_info", "The version that runs; always 1.", () => 1, { version }),
      processGauges,
      heapGauges,
      garbageCollections,
      eventLoopDelay,
    ],
    { discard: true },
  ),
)
