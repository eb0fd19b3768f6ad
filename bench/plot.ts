/** The curve of delay and throughput over offered load, as SVG. */
import * as echarts from "echarts"
import type { Curves, LoadPoint } from "./scenarios/steady.ts"

const [width, height] = [1000, 560]

/** One colour for each system, one way to draw for each figure. */
const systems = [
  { key: "objectlog", name: "objectlog", colour: "#1f77b4" },
  { key: "floorA", name: "floor A", colour: "#999999" },
] as const

const figures = [
  { name: "median", axis: 0, dash: "solid", symbol: "circle", value: (point: LoadPoint) => point.p50 },
  { name: "p99", axis: 0, dash: "dashed", symbol: "triangle", value: (point: LoadPoint) => point.p99 },
  { name: "throughput", axis: 1, dash: "dotted", symbol: "rect", value: (point: LoadPoint) => point.rate },
] as const

export const plot = (curves: Curves, subtitle: string): string => {
  const chart = echarts.init(null, null, { renderer: "svg", ssr: true, width, height })
  chart.setOption({
    animation: false,
    backgroundColor: "#ffffff",
    title: {
      text: "Append to event over offered load",
      subtext: subtitle,
      left: "center",
      top: 8,
      // The machine, its versions and its settings are long: in as many lines as they need.
      subtextStyle: { width: width - 160, overflow: "break", lineHeight: 16 },
    },
    legend: { bottom: 8, itemWidth: 36, itemGap: 20 },
    grid: { left: 80, right: 90, top: 100, bottom: 100 },
    xAxis: { type: "value", name: "offered, appends/s", nameLocation: "middle", nameGap: 32 },
    yAxis: [
      { type: "log", name: "delay, ms", nameLocation: "middle", nameGap: 50, min: 0.1 },
      {
        type: "value",
        name: "throughput, appends/s",
        nameLocation: "middle",
        nameGap: 60,
        splitLine: { show: false },
      },
    ],
    series: systems.flatMap(({ key, name: system, colour }) =>
      figures.map(({ axis, dash, name, symbol, value }) => ({
        name: `${system}, ${name}`,
        type: "line" as const,
        yAxisIndex: axis,
        symbol,
        symbolSize: 7,
        color: colour,
        lineStyle: { type: dash, color: colour },
        data: curves[key].map((point) => [point.offered, value(point)]),
      })),
    ),
  })
  const svg = chart.renderToSVGString()
  chart.dispose()
  return svg
}
