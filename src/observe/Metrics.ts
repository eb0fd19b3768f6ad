/**
 * What the service tells its operators in numbers. `definitions.ts` names them.
 *
 * Every series is a plain number or array of ours, and is read when somebody asks. `MetricsLive` puts them in Effect's
 * metric registry, from which `/metrics` is rendered; `layerMemory` keeps them to itself, for tests. Effect's own
 * histograms are not used: their buckets are 32-bit and wrap after a day at full load.
 */
import { Context, Effect, Layer, Metric, type Scope } from "effect"
import {
  type CounterLabels,
  type CounterName,
  counters,
  type GaugeLabels,
  type GaugeName,
  gauges,
  type HistogramLabels,
  type HistogramName,
  histograms,
  perShard,
} from "./definitions.ts"

/** The content of a histogram. */
export interface Distribution {
  readonly count: number
  readonly sum: number
  /** For each bound how many values are not above it. */
  readonly buckets: ReadonlyArray<readonly [bound: number, count: number]>
}

export class Metrics extends Context.Service<
  Metrics,
  {
    readonly count: <Name extends CounterName>(
      name: Name,
      labels: CounterLabels<Name>,
      by?: number,
    ) => Effect.Effect<void>
    /** A function that adds one to a counter. Made once, called often: it costs some nanoseconds. */
    readonly counter: <Name extends CounterName>(name: Name, labels: CounterLabels<Name>) => () => void
    /** A function that takes values into a histogram. Made once, called often: it costs some nanoseconds. */
    readonly observer: <Name extends HistogramName>(
      name: Name,
      labels: HistogramLabels<Name>,
    ) => (value: number) => void
    /** Lets a gauge be read when somebody asks, until the scope closes; NaN where there is no value. */
    readonly gauge: <Name extends GaugeName>(
      name: Name,
      labels: GaugeLabels<Name>,
      read: () => number,
    ) => Effect.Effect<void, never, Scope.Scope>
    /** The present value of a counter, 0 when it never counted. */
    readonly value: <Name extends CounterName>(name: Name, labels: CounterLabels<Name>) => Effect.Effect<number>
    /** What a gauge reads now, NaN when there is none. */
    readonly reading: <Name extends GaugeName>(name: Name, labels: GaugeLabels<Name>) => Effect.Effect<number>
    readonly distribution: <Name extends HistogramName>(
      name: Name,
      labels: HistogramLabels<Name>,
    ) => Effect.Effect<Distribution>
  }
>()("objectlog/observe/Metrics") {}

type AnyLabels = Readonly<Record<string, string>>

/** Announces a new series to whoever exports it; gives what takes it back. */
interface Exporter {
  readonly counter: (name: CounterName, labels: AnyLabels, read: () => number) => () => void
  readonly gauge: (name: GaugeName, labels: AnyLabels, read: () => number) => () => void
  readonly histogram: (name: HistogramName, labels: AnyLabels, read: () => Distribution) => () => void
}

class Counter {
  value = 0
}

class Histogram {
  readonly #bounds: ReadonlyArray<number>
  /** Values in each bucket, and above the last one. Doubles, which count exactly up to 2^53. */
  readonly #counts: Float64Array
  #sum = 0

  constructor(bounds: ReadonlyArray<number>) {
    this.#bounds = bounds
    this.#counts = new Float64Array(bounds.length + 1)
  }

  observe(value: number): void {
    const bounds = this.#bounds
    let low = 0
    let high = bounds.length
    while (low < high) {
      const middle = (low + high) >> 1
      if (value <= bounds[middle]!) high = middle
      else low = middle + 1
    }
    this.#counts[low]!++
    this.#sum += value
  }

  read(): Distribution {
    let count = 0
    const buckets = this.#bounds.map((bound, i) => [bound, (count += this.#counts[i]!)] as const)
    return { count: count + this.#counts[this.#bounds.length]!, sum: this.#sum, buckets }
  }
}

/** The labels of each metric in their one order. */
const labelNames = new Map<string, ReadonlyArray<string>>(
  Object.entries({ ...counters, ...gauges, ...histograms }).map(([name, { labels }]) => [name, Object.keys(labels)]),
)

const key = (name: CounterName | GaugeName | HistogramName, labels: AnyLabels): string =>
  `${name} ${JSON.stringify(labelNames.get(name)!.map((label) => labels[label]))}`

const make = (exporter: Exporter): Metrics["Service"] & { readonly withdraw: () => void } => {
  const counted = new Map<string, Counter>()
  const distributed = new Map<string, Histogram>()
  const read = new Map<string, () => number>()
  const withdrawals: Array<() => void> = []

  const counter = (name: CounterName, labels: AnyLabels): Counter => {
    const at = key(name, labels)
    let found = counted.get(at)
    if (found === undefined) {
      const added = (found = new Counter())
      counted.set(at, added)
      withdrawals.push(exporter.counter(name, labels, () => added.value))
    }
    return found
  }
  const histogram = (name: HistogramName, labels: AnyLabels): Histogram => {
    const at = key(name, labels)
    let found = distributed.get(at)
    if (found === undefined) {
      const added = (found = new Histogram(histograms[name].bounds))
      distributed.set(at, added)
      withdrawals.push(exporter.histogram(name, labels, () => added.read()))
    }
    return found
  }
  return {
    count: (name, labels, by = 1) => Effect.sync(() => void (counter(name, labels).value += by)),
    counter: (name, labels) => {
      const found = counter(name, labels)
      return () => void found.value++
    },
    observer: (name, labels) => {
      const found = histogram(name, labels)
      return (value) => found.observe(value)
    },
    gauge: (name, labels, current) =>
      Effect.acquireRelease(
        Effect.sync(() => {
          read.set(key(name, labels), current)
          return exporter.gauge(name, labels, current)
        }),
        (withdraw) =>
          Effect.sync(() => {
            withdraw()
            if (read.get(key(name, labels)) === current) read.delete(key(name, labels))
          }),
      ).pipe(Effect.asVoid),
    value: (name, labels) => Effect.sync(() => counted.get(key(name, labels))?.value ?? 0),
    reading: (name, labels) => Effect.sync(() => read.get(key(name, labels))?.() ?? Number.NaN),
    distribution: (name, labels) =>
      Effect.sync(() => (distributed.get(key(name, labels)) ?? new Histogram(histograms[name].bounds)).read()),
    withdraw: () => withdrawals.forEach((withdraw) => withdraw()),
  }
}

/** All combinations of the values of labels. */
const combinations = (
  labels: Readonly<Record<string, ReadonlyArray<string> | typeof perShard>>,
  shards: ReadonlyArray<string>,
): ReadonlyArray<AnyLabels> =>
  Object.entries(labels).reduce<ReadonlyArray<AnyLabels>>(
    (all, [label, values]) =>
      all.flatMap((known) => (values === perShard ? shards : values).map((value) => ({ ...known, [label]: value }))),
    [{}],
  )

/**
 * In the metric registry of the context in which the layer is built. All counters and histograms of these shards are there
 * from the start, with 0, so that a rate sees the first event too; but for retries, whose reasons are many.
 */
export const MetricsLive = (shards: ReadonlyArray<string>): Layer.Layer<Metrics> =>
  Layer.effect(
    Metrics,
    Effect.gen(function* () {
      const context = yield* Effect.context<never>()
      const none = () => undefined
      const metrics = make({
        counter: (name, attributes, read) => {
          const metric = Metric.counter(`objectlog_${name}`, { description: counters[name].help, attributes })
          const get = () => ({ count: read(), incremental: true })
          return Metric.registerUnsafe(metric, context, { get, update: none, modify: none }).remove
        },
        gauge: (name, attributes, read) => {
          const metric = Metric.gauge(`objectlog_${name}`, { description: gauges[name].help, attributes })
          const get = () => ({ value: read() })
          return Metric.registerUnsafe(metric, context, { get, update: none, modify: none }).remove
        },
        histogram: (name, attributes, read) => {
          const { bounds, help } = histograms[name]
          const metric = Metric.histogram(`objectlog_${name}`, { description: help, attributes, boundaries: bounds })
          // The registry also wants the extremes, which Prometheus does not know.
          const get = () => ({ ...read(), min: Number.NaN, max: Number.NaN })
          return Metric.registerUnsafe(metric, context, { get, update: none, modify: none }).remove
        },
      })
      yield* Effect.addFinalizer(() => Effect.sync(metrics.withdraw))
      for (const name of Object.keys(counters) as Array<CounterName>) {
        if (name === "retries_total") continue
        for (const labels of combinations(counters[name].labels, shards)) {
          yield* metrics.count(name, labels as CounterLabels<typeof name>, 0)
        }
      }
      for (const name of Object.keys(histograms) as Array<HistogramName>) {
        for (const labels of combinations(histograms[name].labels, shards)) {
          metrics.observer(name, labels as HistogramLabels<typeof name>)
        }
      }
      return Metrics.of(metrics)
    }),
  )

const unexported = () => () => undefined

export const layerMemory: Layer.Layer<Metrics> = Layer.sync(Metrics, () =>
  Metrics.of(make({ counter: unexported, gauge: unexported, histogram: unexported })),
)
