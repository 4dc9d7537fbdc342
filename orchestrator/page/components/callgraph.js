// The call graph on a canvas. Places come from the server; sizes, labels and colours are chosen here, by the room there is.
// `data-drawn` counts pictures that are on the screen; `data-nodes` says what the last one holds.
import { echarts } from "nicegui-echart";

const SYMBOLS = { warm: "circle", preparing: "triangle", cold: "circle", "not deployed": "rect", unknown: "diamond" };
const FILLED = ["warm", "preparing"];
const DOT = { large: 16, medium: 10, small: 6 };
const MANY = 400; // of more calls, lines are drawn in STRENGTHS bundles of one path each, without arrows and tooltips
const STRENGTHS = 5;

export default {
  template: `<div class="callgraph" role="img" :aria-label="label"></div>`,
  props: { label: String },
  emits: ["choose"],
  mounted() {
    this.picture = { nodes: [], edges: [] };
    this.chosen = "";
    this.drawn = 0;
    this.chart = echarts.init(this.$el, null, { renderer: "canvas" });
    this.chart.on("click", (event) => event.dataType === "node" && this.$emit("choose", event.data.name));
    this.chart.on("finished", () => {
      if (!this.fresh) return;
      this.fresh = false;
      this.shown();
    });
    this.sized = new ResizeObserver(() => {
      if (this.$el.clientWidth === this.chart.getWidth() && this.$el.clientHeight === this.chart.getHeight()) return;
      this.chart.resize();
      this.draw_soon();
    });
    this.sized.observe(this.$el);
    this.themed = new MutationObserver(() => this.draw_soon());
    this.themed.observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
    this.scheme = window.matchMedia("(prefers-color-scheme: dark)");
    this.rescheme = () => this.draw_soon();
    this.scheme.addEventListener("change", this.rescheme);
  },
  unmounted() {
    cancelAnimationFrame(this.asked);
    this.sized.disconnect();
    this.themed.disconnect();
    this.scheme.removeEventListener("change", this.rescheme);
    this.chart.dispose();
  },
  methods: {
    set_picture(picture, chosen) {
      this.picture = picture;
      this.chosen = chosen;
      this.draw_soon();
    },
    set_states(states, chosen) {
      for (const node of this.picture.nodes) node[3] = states[node[0]] ?? node[3];
      this.chosen = chosen;
      this.draw_soon();
    },
    shown() {
      this.$el.dataset.nodes = this.picture.nodes.length;
      this.$el.dataset.edges = this.picture.edges.length;
      this.$el.dataset.drawn = ++this.drawn;
    },
    draw_soon() {
      this.asked ??= requestAnimationFrame(() => {
        this.asked = null;
        this.draw();
      });
    },
    zoom(factor) {
      const zooms = this.chart.getOption().dataZoom ?? [];
      zooms.forEach(({ start, end }, index) => {
        const middle = (start + end) / 2;
        const half = Math.min(50, (end - start) / 2 / factor);
        const from = factor === 0 ? 0 : Math.max(0, Math.min(middle - half, 100 - 2 * half));
        const to = factor === 0 ? 100 : from + 2 * half;
        this.chart.dispatchAction({ type: "dataZoom", dataZoomIndex: index, start: from, end: to });
      });
    },
    colour(name) {
      return getComputedStyle(this.$el).getPropertyValue(`--${name}`).trim();
    },
    room() {
      const xs = this.picture.nodes.map((node) => node[1]);
      const ys = this.picture.nodes.map((node) => node[2]);
      const span = { left: Math.min(...xs), right: Math.max(...xs), top: Math.min(...ys), bottom: Math.max(...ys) };
      const width = this.$el.clientWidth, height = this.$el.clientHeight;
      const each = Math.min(width / (span.right - span.left + 1), (1.6 * height) / (span.bottom - span.top + 1));
      return { ...span, width, height, size: each >= 60 ? "large" : each >= 18 ? "medium" : "small" };
    },
    bundles(width, line, accent, chosen) {
      const { nodes, edges } = this.picture;
      const place = (index) => [nodes[index][1], nodes[index][2]];
      const lines = (chosenOnes, style) => ({
        type: "lines", coordinateSystem: "cartesian2d", animation: false, silent: true, z: 1,
        large: true, largeThreshold: 0, lineStyle: style,
        data: chosenOnes.map(([from, to]) => ({ coords: [place(from), place(to)] })),
      });
      const own = ([from, to]) => from === chosen || to === chosen;
      const bundles = [];
      for (let strength = 0; strength < STRENGTHS; strength++) {
        const within = edges.filter((edge) => Math.min(STRENGTHS - 1, Math.floor(edge[2] * STRENGTHS)) === strength && !own(edge));
        const share = (strength + 0.5) / STRENGTHS;
        if (within.length)
          bundles.push(lines(within, { width: width(share), color: line, opacity: chosen >= 0 ? 0.12 : 0.25 + 0.5 * share }));
      }
      if (chosen >= 0) bundles.push(lines(edges.filter(own), { width: 1.8, color: accent, opacity: 0.9 }));
      return bundles;
    },
    draw() {
      if (!this.$el.clientWidth) return;
      const { nodes, edges } = this.picture;
      if (!nodes.length) {
        this.chart.setOption({ series: [] }, { replaceMerge: ["series"] });
        this.shown();
        return;
      }
      const room = this.room();
      const large = room.size === "large";
      const tone = {};
      for (const state of Object.keys(SYMBOLS)) tone[state] = this.colour(`tone-${state.replace(" ", "-")}`);
      const text = this.colour("text"), quiet = this.colour("quiet"), line = this.colour("edge"), accent = this.colour("accent");
      const paper = this.colour("paper");
      const dot = DOT[room.size];
      const near = new Set();
      const chosen = nodes.findIndex((node) => node[0] === this.chosen);
      if (chosen >= 0)
        for (const [from, to] of edges)
          if (from === chosen || to === chosen) near.add(from).add(to);
      const faint = (from, to) => chosen >= 0 && from !== chosen && to !== chosen;
      const many = edges.length > MANY;
      const least = many ? 0.3 : 0.6;
      const most = large ? 5.5 : many ? 1.6 : 3.5;
      const width = (probability) => least + (most - least) * probability;
      this.fresh = true;
      const narrow = room.width < 560;
      this.chart.setOption(
        {
          animation: false,
          textStyle: { fontFamily: getComputedStyle(this.$el).fontFamily },
          grid: { left: narrow ? 34 : 60, right: narrow ? 34 : 70, top: 24, bottom: 34 },
          xAxis: { type: "value", show: false, min: room.left, max: room.right > room.left ? room.right : room.left + 1 },
          yAxis: { type: "value", show: false, inverse: true, min: room.top - 0.4, max: Math.max(room.bottom, room.top + 1) + 0.4 },
          dataZoom: ["xAxisIndex", "yAxisIndex"].map((axis) => ({
            type: "inside", [axis]: 0, filterMode: "none", zoomOnMouseWheel: "ctrl", moveOnMouseWheel: false,
            moveOnMouseMove: !narrow, preventDefaultMouseMove: false,
          })),
          tooltip: {
            confine: true, backgroundColor: paper, borderColor: line, textStyle: { color: text, fontSize: 13 },
            renderMode: "richText",
            formatter: (asked) =>
              asked.dataType === "node"
                ? `${asked.data.name}\n${asked.data.state}`
                : `${nodes[edges[asked.dataIndex][0]][0]} calls ${nodes[edges[asked.dataIndex][1]][0]}\n` +
                  `in ${Math.round(100 * edges[asked.dataIndex][2])} % of its runs` +
                  (edges[asked.dataIndex][3] ? ", declared" : ""),
          },
          series: [
            {
              type: "graph", layout: "none", coordinateSystem: "cartesian2d", animation: false,
              edgeSymbol: ["none", "arrow"], edgeSymbolSize: large ? 9 : 6,
              labelLayout: { hideOverlap: nodes.length > 40 },
              emphasis: { disabled: nodes.length > 200 },
              data: nodes.map(([name, x, y, state, matches], index) => {
                const dim = (chosen >= 0 && !near.has(index) && index !== chosen) || !matches;
                const wide = state === "preparing" ? 1.15 : 1;
                return {
                  name, state, value: [x, y], symbol: SYMBOLS[state], symbolSize: dot * wide,
                  itemStyle: {
                    color: FILLED.includes(state) ? tone[state] : paper, borderColor: index === chosen ? accent : tone[state],
                    borderWidth: index === chosen ? 3 : FILLED.includes(state) ? 0 : dot > 8 ? 2 : 1.2,
                    opacity: dim ? 0.45 : 1,
                  },
                  label: {
                    show: nodes.length <= 300 || near.has(index) || index === chosen, position: "bottom", distance: large ? 5 : 3,
                    formatter: name.length > 26 ? name.slice(0, 12) + "…" + name.slice(-12) : name,
                    color: dim ? quiet : text, opacity: 1, fontSize: large && !narrow ? 13 : 11, fontWeight: index === chosen ? 700 : 400,
                    textBorderColor: paper, textBorderWidth: 3,
                  },
                };
              }),
              links: (many ? [] : edges).map(([from, to, probability, declared]) => {
                const own = from === chosen || to === chosen;
                const back = nodes[to][1] <= nodes[from][1];
                const far = Math.abs(nodes[to][1] - nodes[from][1]) > 1.5;
                return {
                  source: from, target: to,
                  lineStyle: {
                    width: width(probability), color: own ? accent : line, type: declared ? "dashed" : "solid",
                    opacity: faint(from, to) ? 0.15 : 0.9,
                    curveness: from === to ? 0.6 : back ? 0.35 : far ? 0.14 : 0,
                  },
                  label: {
                    show: probability < 0.995 && edges.length <= 60 && large && !narrow, formatter: `${Math.round(100 * probability)} %`, color: quiet, fontSize: 11,
                    textBorderColor: paper, textBorderWidth: 3,
                  },
                };
              }),
            },
            ...(many ? this.bundles(width, line, accent, chosen) : []),
          ],
        },
        { replaceMerge: ["series"] },
      );
    },
  },
};
