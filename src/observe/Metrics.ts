/**
 * What the pipelines count. `MetricsLive` keeps the counters in Effect's metric registry, from which `/metrics` is
 * rendered; `layerMemory` keeps them to itself, for tests. Labels are bounded: never an object id.
 */
import { Context, Effect, Layer, Metric } from "effect"

/** Counters in Prometheus' names, with their label names. */
export const counters = {
  messages_total: { description: "Requests finished, by subject and outcome", labels: ["subject", "outcome"] },
  redeliveries_total: { description: "Deliveries that were not the first of their message", labels: ["subject"] },
  append_batches_total: { description: "Append transactions committed", labels: ["shard"] },
  appended_entries_total: { description: "Appends committed or found committed", labels: ["shard"] },
  handed_back_total: { description: "Deliveries handed back to the broker unprocessed", labels: ["shard"] },
  retries_total: { description: "Attempts that failed for a transient reason", labels: ["part", "reason"] },
  dead_letters_total: { description: "Messages stored as dead letters", labels: ["code"] },
  entries_read_total: { description: "Entries sent in pages", labels: ["shard"] },
  pages_sent_total: { description: "Pages sent", labels: ["shard"] },
} as const satisfies Record<string, { readonly description: string; readonly labels: ReadonlyArray<string> }>

export type CounterName = keyof typeof counters

type Labels<Name extends CounterName> = { readonly [Label in (typeof counters)[Name]["labels"][number]]: string }

export class Metrics extends Context.Service<
  Metrics,
  {
    readonly count: <Name extends CounterName>(name: Name, labels: Labels<Name>, by?: number) => Effect.Effect<void>
    /** The present value of a counter, 0 when it never counted. */
    readonly value: <Name extends CounterName>(name: Name, labels: Labels<Name>) => Effect.Effect<number>
  }
>()("objectlog/observe/Metrics") {}

const seriesKey = (name: CounterName, labels: Readonly<Record<string, string>>): string =>
  `${name} ${counters[name].labels.map((label) => labels[label]).join(" ")}`

/** Counts in the metric registry of the fiber's context. */
export const MetricsLive: Layer.Layer<Metrics> = Layer.sync(Metrics, () => {
  const bare = new Map<CounterName, Metric.Counter<number>>()
  // Tagging costs three times as much as counting, so every series is tagged once.
  const series = new Map<string, Metric.Metric<number, Metric.CounterState<number>>>()
  const handle = (name: CounterName, labels: Readonly<Record<string, string>>) => {
    const key = seriesKey(name, labels)
    let metric = series.get(key)
    if (metric === undefined) {
      let counter = bare.get(name)
      if (counter === undefined) {
        counter = Metric.counter(`objectlog_${name}`, { description: counters[name].description, incremental: true })
        bare.set(name, counter)
      }
      metric = Metric.withAttributes(counter, labels)
      series.set(key, metric)
    }
    return metric
  }
  return Metrics.of({
    count: (name, labels, by = 1) => Metric.update(handle(name, labels), by),
    value: (name, labels) => Effect.map(Metric.value(handle(name, labels)), (state) => state.count),
  })
})

export const layerMemory: Layer.Layer<Metrics> = Layer.sync(Metrics, () => {
  const series = new Map<string, number>()
  return Metrics.of({
    count: (name, labels, by = 1) =>
      Effect.sync(() => {
        const key = seriesKey(name, labels)
        series.set(key, (series.get(key) ?? 0) + by)
      }),
    value: (name, labels) => Effect.sync(() => series.get(seriesKey(name, labels)) ?? 0),
  })
})
