/** Figures as they are measured: a table on the terminal, and JSON. */
import { Context, Effect, Layer } from "effect"

export interface Figure {
  readonly scenario: string
  readonly what: string
  readonly value: number
  readonly unit: string
  /** The value in relation to that of another figure of the same run, and what it is. */
  readonly ratio?: { readonly of: string; readonly value: number }
  /** What the issue of speed asks for, and whether it was reached. */
  readonly bar?: { readonly text: string; readonly reached: boolean }
}

export class Report extends Context.Service<
  Report,
  { readonly add: (figure: Figure) => Effect.Effect<void>; readonly figures: () => ReadonlyArray<Figure> }
>()("bench/Report") {
  static readonly layer = Layer.sync(Report, () => {
    const figures: Array<Figure> = []
    return Report.of({
      figures: () => figures,
      add: (figure) =>
        Effect.sync(() => {
          figures.push(figure)
          process.stderr.write(`${row(figure)}\n`)
        }),
    })
  })
}

export const add = (figure: Figure): Effect.Effect<void, never, Report> => Report.use((report) => report.add(figure))

const digits = (value: number): string =>
  value >= 1_000
    ? Math.round(value).toLocaleString("en-US")
    : value >= 100
      ? value.toFixed(0)
      : value >= 10
        ? value.toFixed(1)
        : value.toFixed(2)

const row = ({ what, value, unit, ratio, bar }: Figure): string =>
  `| ${what} | ${digits(value)} ${unit} | ${ratio === undefined ? "" : `${ratio.value.toFixed(2)} × ${ratio.of}`} | ${bar === undefined ? "" : `${bar.text}: ${bar.reached ? "reached" : "missed"}`} |`

/** All figures as Markdown, a table for each scenario. */
export const tables = (figures: ReadonlyArray<Figure>): string =>
  [...Map.groupBy(figures, (figure) => figure.scenario)]
    .map(
      ([scenario, those]) =>
        `### ${scenario}\n\n| what | measured | ratio in the same run | bar |\n| --- | --- | --- | --- |\n${those.map(row).join("\n")}`,
    )
    .join("\n\n")

export const median = (values: ReadonlyArray<number>): number => {
  const sorted = values.toSorted((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2
}

/** The run whose value is the median, or the nearest to it. */
export const medianRun = <Run>(runs: ReadonlyArray<Run>, valueOf: (run: Run) => number): Run => {
  const middle = median(runs.map(valueOf))
  return runs.toSorted((a, b) => Math.abs(valueOf(a) - middle) - Math.abs(valueOf(b) - middle))[0]!
}
