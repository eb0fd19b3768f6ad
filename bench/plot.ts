/** The curve of throughput and delay over offered load, as SVG. */
import * as echarts from "echarts"
import type { LoadPoint } from "./scenarios/steady.ts"

export const plot = (points: ReadonlyArray<LoadPoint>, subtitle: string): string => {
  const chart = echarts.init(null, null, { renderer: "svg", ssr: true, width: 900, height: 460 })
  const line = (name: string, yAxisIndex: number, value: (point: LoadPoint) => number, dashed = false) => ({
    name,
    type: "line" as const,
    yAxisIndex,
    symbolSize: 7,
    lineStyle: { type: dashed ? ("dashed" as const) : ("solid" as const) },
    data: points.map((point) => [point.offered, value(point)]),
  })
  chart.setOption({
    animation: false,
    backgroundColor: "#ffffff",
    title: { text: "Append to event over offered load", subtext: subtitle, left: "center" },
    legend: { bottom: 0 },
    grid: { left: 70, right: 70, top: 80, bottom: 80 },
    xAxis: { type: "value", name: "offered, appends/s", nameLocation: "middle", nameGap: 28 },
    yAxis: [
      { type: "log", name: "delay, ms", min: 0.1 },
      { type: "value", name: "throughput, appends/s", splitLine: { show: false } },
    ],
    series: [
      line("delay, median", 0, (point) => point.p50),
      line("delay, p99", 0, (point) => point.p99),
      line("delay, p99.9", 0, (point) => point.p999),
      line("throughput", 1, (point) => point.rate, true),
    ],
  })
  const svg = chart.renderToSVGString()
  chart.dispose()
  return svg
}
