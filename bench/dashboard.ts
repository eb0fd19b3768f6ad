/**
 * Draws the panels of Grafana's dashboard from what a Prometheus has recorded, with the dashboard's own queries, as one
 * SVG: the picture in the README. Nothing in it is drawn by hand.
 *
 * `npx node bench/dashboard.ts --prometheus http://127.0.0.1:9090 --minutes 6 --out docs/dashboard.svg`
 */
import { readFileSync, writeFileSync } from "node:fs"
import { parseArgs } from "node:util"

const { values: options } = parseArgs({
  options: {
    prometheus: { type: "string", default: "http://127.0.0.1:9090" },
    minutes: { type: "string", default: "6" },
    /** The end, as Unix seconds. */
    to: { type: "string", default: String(Math.floor(Date.now() / 1_000)) },
    out: { type: "string", default: "docs/dashboard.svg" },
  },
})

/** Panels of the picture, by title, in rows. */
const chosen = [
  ["Appends", "Append: from the broker's stamp to the confirmed event", "Entries in a transaction"],
  ["Shard answers", "Waiting in the broker", "Under way or given back"],
  ["Append transaction, p99", "Given back and delivered again", "Processor time"],
]

const points = 180
const width = 400
const height = 260
const gap = 12
const legendLines = 3
const plot = { left: 56, right: 14, top: 40, bottom: 36 + legendLines * 14 }
const colours = ["#73bf69", "#5794f2", "#f2cc0c", "#ff9830", "#b877d9", "#f2495c", "#8ab8ff", "#96d98d"]

interface Target {
  readonly expr: string
  readonly legendFormat: string
}

interface Panel {
  readonly type: string
  readonly title: string
  readonly targets: ReadonlyArray<Target>
  readonly fieldConfig: {
    readonly defaults: {
      readonly unit?: string
      readonly custom?: {
        readonly stacking?: { readonly mode: string }
        readonly scaleDistribution?: { readonly type: string }
      }
    }
  }
}

interface Series {
  readonly name: string
  /** Unix seconds and value; NaN where there is none. */
  readonly values: ReadonlyArray<number>
}

interface QueryAnswer {
  readonly data: {
    readonly result: ReadonlyArray<{
      readonly metric: Readonly<Record<string, string>>
      readonly values: ReadonlyArray<readonly [at: number, value: string]>
    }>
  }
}

const to = Number(options.to)
const seconds = Number(options.minutes) * 60
const from = to - seconds
const step = seconds / points

const query = async ({ expr, legendFormat }: Target): Promise<ReadonlyArray<Series>> => {
  const url = new URL("/api/v1/query_range", options.prometheus)
  const asked = { query: expr.replaceAll("$__rate_interval", "20s"), start: from, end: to, step }
  for (const [name, value] of Object.entries(asked)) url.searchParams.set(name, String(value))
  const response = await fetch(url)
  if (!response.ok) throw new Error(`${expr}: ${response.status} ${await response.text()}`)
  const { data } = (await response.json()) as QueryAnswer
  return data.result.map(({ metric, values }) => {
    const all = Array.from({ length: points + 1 }, () => Number.NaN)
    for (const [at, value] of values) all[Math.round((at - from) / step)] = Number(value)
    const name = legendFormat.replaceAll(/\{\{(\w+)\}\}/g, (_, label: string) => metric[label] ?? "").trim()
    return { name, values: all }
  })
}

const escaped = (text: string) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;")

const short = (value: number): string => {
  for (const [scale, unit] of [
    [1e9, " G"],
    [1e6, " M"],
    [1e3, " k"],
  ] as const) {
    if (Math.abs(value) >= scale) return `${Number((value / scale).toPrecision(3))}${unit}`
  }
  return String(Number(value.toPrecision(3)))
}

const formatted = (value: number, unit = "short"): string => {
  if (unit === "s") return value < 1 ? `${Number((value * 1_000).toPrecision(3))} ms` : `${short(value)} s`
  if (unit === "percentunit") return `${Math.round(value * 100)} %`
  return unit === "cps" ? `${short(value)}/s` : short(value)
}

/** A round number that is not below the value. */
const ceiling = (value: number): number => {
  const scale = 10 ** Math.floor(Math.log10(value))
  return ([1, 2, 2.5, 5, 10].find((step) => step * scale >= value) ?? 10) * scale
}

const x = (index: number) => plot.left + (index / points) * (width - plot.left - plot.right)

const path = (values: ReadonlyArray<number>, y: (value: number) => number): string => {
  let drawing = false
  let text = ""
  for (const [index, value] of values.entries()) {
    if (Number.isFinite(value)) text += `${drawing ? "L" : "M"}${x(index).toFixed(1)} ${y(value).toFixed(1)}`
    drawing = Number.isFinite(value)
  }
  return text
}

const clock = (at: number) => new Date(at * 1_000).toISOString().slice(11, 16)

const timeAxis = (): string => {
  const lines: Array<string> = []
  for (let at = Math.ceil(from / 60) * 60; at <= to; at += 60) {
    const place = x((at - from) / step).toFixed(1)
    lines.push(
      `<path class="g" d="M${place} ${plot.top}V${height - plot.bottom}"/>`,
      `<text class="a" text-anchor="middle" x="${place}" y="${height - plot.bottom + 14}">${clock(at)}</text>`,
    )
  }
  return lines.join("")
}

/** All names, in as many lines as they need. */
const legend = (names: ReadonlyArray<string>): string => {
  let [at, line] = [14, 0]
  let text = ""
  for (const [index, name] of names.entries()) {
    const wide = 22 + name.length * 6
    if (at > 14 && at + wide > width) [at, line] = [14, line + 1]
    const y = height - plot.bottom + 34 + line * 14
    text += `<rect x="${at}" y="${y - 5}" width="10" height="3" fill="${colours[index % colours.length]}"/>`
    text += `<text class="l" x="${at + 14}" y="${y}">${escaped(name)}</text>`
    at += wide
  }
  if (line >= legendLines) throw new Error(`a legend of ${line + 1} lines has no room: ${names.join(", ")}`)
  return text
}

const timeSeries = ({ fieldConfig }: Panel, series: ReadonlyArray<Series>): string => {
  const { custom, unit } = fieldConfig.defaults
  const stacked = custom?.stacking?.mode === "normal"
  const logarithmic = custom?.scaleDistribution?.type === "log"
  const sums = Array.from({ length: points + 1 }, () => 0)
  const drawn = series.map(({ values }) => ({
    values: stacked ? values.map((value, index) => (sums[index]! += Number.isFinite(value) ? value : 0)) : values,
  }))
  const finite = drawn.flatMap(({ values }) => values.filter((value) => Number.isFinite(value)))
  const highest = Math.max(...finite, 0) || 1
  const bottom = height - plot.bottom
  const [low, high] = logarithmic
    ? [
        10 ** Math.floor(Math.log10(Math.min(...finite.filter((value) => value > 0)))),
        10 ** Math.ceil(Math.log10(highest)),
      ]
    : [0, ceiling(highest)]
  const share = (value: number) =>
    logarithmic ? Math.log(Math.max(value, low) / low) / Math.log(high / low) : (value - low) / (high - low)
  const y = (value: number) => bottom - share(value) * (bottom - plot.top)
  const marks = logarithmic
    ? Array.from({ length: Math.round(Math.log10(high / low)) + 1 }, (_, index) => low * 10 ** index)
    : [0, 0.25, 0.5, 0.75, 1].map((part) => low + part * (high - low))
  const grid = marks.map(
    (mark) =>
      `<path class="g" d="M${plot.left} ${y(mark).toFixed(1)}H${width - plot.right}"/><text class="a" text-anchor="end" x="${plot.left - 6}" y="${(y(mark) + 3.5).toFixed(1)}">${formatted(mark, unit)}</text>`,
  )
  // The highest of a stack first, so that the lower ones are drawn over it.
  const order = [...drawn.entries()]
  if (stacked) order.reverse()
  const lines = order.map(([index, { values }]) => {
    const colour = colours[index % colours.length]
    const line = path(values, y)
    const area = stacked ? `<path fill="${colour}" fill-opacity=".45" d="${line}V${bottom}H${plot.left}Z"/>` : ""
    return `${area}<path class="s" stroke="${colour}" d="${line}"/>`
  })
  return grid.join("") + lines.join("") + legend(series.map(({ name }) => name))
}

/** A bar for each series, green where it is 1 and red where it is 0. */
const stateTimeline = (series: ReadonlyArray<Series>): string => {
  const row = (height - plot.top - plot.bottom) / Math.max(series.length, 1)
  return series
    .map(({ name, values }, line) => {
      let text = `<text class="a" text-anchor="end" x="${plot.left - 6}" y="${(plot.top + (line + 0.5) * row + 3).toFixed(1)}">${escaped(name)}</text>`
      let start = 0
      for (let index = 1; index <= values.length; index++) {
        if (index < values.length && values[index] === values[start]) continue
        const value = values[start]!
        if (Number.isFinite(value)) {
          const [left, right] = [x(start), x(Math.min(index, points))]
          const colour = value === 1 ? "#37872d" : "#c4162a"
          const top = plot.top + line * row + 6
          text += `<rect x="${left.toFixed(1)}" y="${top.toFixed(1)}" width="${(right - left).toFixed(1)}" height="${(row - 12).toFixed(1)}" fill="${colour}"/>`
          if (right - left > 30) {
            text += `<text class="t" text-anchor="middle" x="${((left + right) / 2).toFixed(1)}" y="${(top + row / 2 - 2).toFixed(1)}">${value === 1 ? "up" : "down"}</text>`
          }
        }
        start = index
      }
      return text
    })
    .join("")
}

const dashboard = JSON.parse(readFileSync("deploy/grafana/dashboards/objectlog.json", "utf8")) as {
  readonly panels: ReadonlyArray<Panel>
}

const drawPanel = async (title: string, left: number, top: number): Promise<string> => {
  // Some are there a second time as a single number.
  const panel = dashboard.panels.find((one) => one.title === title && one.type !== "stat")
  if (panel === undefined) throw new Error(`the dashboard has no panel ${title}`)
  const series = (await Promise.all(panel.targets.map(query))).flat()
  if (series.length === 0) throw new Error(`${title}: Prometheus has no data between ${clock(from)} and ${clock(to)}`)
  if (series.some(({ name }) => name === "")) throw new Error(`${title}: a series has no name`)
  const content = panel.type === "state-timeline" ? stateTimeline(series) : timeSeries(panel, series)
  return `<g transform="translate(${left} ${top})"><rect class="p" width="${width}" height="${height}" rx="3"/><text class="h" x="14" y="22">${escaped(title)}</text>${timeAxis()}${content}</g>`
}

const drawn = await Promise.all(
  chosen.flatMap((row, down) =>
    row.map((title, along) => drawPanel(title, gap + along * (width + gap), gap + down * (height + gap))),
  ),
)
const [across, down] = [gap + 3 * (width + gap), gap + chosen.length * (height + gap)]
const style =
  "text{font-family:Inter,Helvetica,Arial,sans-serif;fill:#ccccdc}.h{font-size:13px;font-weight:500}.a{font-size:10px;fill:#9a9aa8}.l{font-size:11px}.t{font-size:11px;fill:#fff}.p{fill:#181b1f;stroke:#2c2f36}.g{stroke:#2a2d33;fill:none}.s{fill:none;stroke-width:1.4;stroke-linejoin:round}"
writeFileSync(
  options.out,
  `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${across} ${down}" width="${across}" height="${down}"><style>${style}</style><rect width="100%" height="100%" fill="#111217"/>${drawn.join("\n")}</svg>\n`,
)
