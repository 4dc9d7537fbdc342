// Step charts of instances wanted, ready and busy. Points come once and then as they are made (`tell`); a drawing is stretched by
// the browser, so it fits any width, and its colours are those of the style sheet. Large ones have axes and a point in time that
// is chosen by pointer or keyboard. `data-points` says how many points the drawing holds.
const WIDTH = 1000, HEIGHT = 100, KEPT = 600;
const TICKS = { 300: 60, 1800: 300, 7200: 1200 };

const nice = (value) => [1, 2, 5, 10].map((one) => one * 10 ** Math.floor(Math.log10(value))).find((one) => one >= value);

export default {
  template: `
    <ul class="courses" :class="{ large }" :aria-label="label">
      <li v-for="card in drawn" :key="card.key" class="course" :class="{ chosen: card.chosen }" :data-key="card.key" :data-points="card.count">
        <div class="head">
          <h3>
            <button v-if="card.choose" type="button" class="choose" :aria-current="card.chosen ? 'true' : null"
              @click="$emit('choose', card.choose)">{{ card.name }}</button>
            <template v-else>{{ card.name }}</template>
          </h3>
          <span v-if="card.sub" class="sub">{{ card.sub }}</span>
        </div>
        <p class="counts"><span v-for="[many, what] in card.counts" :key="what" :class="'of-' + what"><b>{{ many }}</b> {{ what }}</span></p>
        <div class="plot">
          <svg :viewBox="box" preserveAspectRatio="none" aria-hidden="true"
            @pointermove="large && point(card, $event)" @pointerdown="large && point(card, $event)" @pointerleave="large && leave(card, $event)">
            <line v-for="one in card.lines" :key="one.value" class="grid" x1="0" :x2="width" :y1="one.y" :y2="one.y" />
            <line v-for="one in card.times" :key="one.at" class="grid" :x1="one.x" :x2="one.x" y1="0" :y2="height" />
            <path class="ready" :d="card.ready[1]" /><path class="busy" :d="card.busy[1]" />
            <path class="edge" :d="card.ready[0]" /><path class="wanted" :d="card.wanted[0]" />
            <line v-if="card.cursor" class="cursor" :x1="card.cursor.x" :x2="card.cursor.x" y1="0" :y2="height" />
          </svg>
          <span v-for="one in card.lines" :key="one.value" class="y" :style="{ top: one.y + '%' }" aria-hidden="true">{{ one.value }}</span>
          <p v-if="!card.count" class="sub silent">no change known in this time</p>
        </div>
        <template v-if="large">
          <input type="range" min="0" :max="span" step="any" :value="card.chosenAt - from" :aria-label="'Point in time, ' + card.name"
            :aria-valuetext="card.read" @input="slide(card, $event)" @keydown="step(card, $event)">
          <div class="times" aria-hidden="true"><span v-for="one in card.times" :key="one.at" :style="{ left: one.x / 10 + '%' }">{{ one.text }}</span></div>
          <p v-if="card.told" class="readout">
            <b>{{ card.when }}</b> {{ card.told[1] }} wanted, {{ card.told[2] }} ready, {{ card.told[3] }} busy
            <span class="sub"><b>{{ card.decided }}</b> {{ card.reason }}</span>
          </p>
        </template>
        <p v-else class="why">
          <span v-if="card.by" class="mark"><span class="sign" aria-hidden="true">{{ card.by.sign }}</span><b>{{ card.by.text }}</b></span>
          {{ card.why }}
        </p>
        <p v-if="card.note" class="note">{{ card.note }}</p>
      </li>
    </ul>`,
  props: { label: String, large: Boolean, cards: Array },
  emits: ["choose"],
  data: () => ({ beat: 0, now: 0, span: 300, cursors: {}, width: WIDTH, height: HEIGHT, box: `0 0 ${WIDTH} ${HEIGHT}` }),
  created() {
    this.series = {}; // not watched: `beat` says when it is another
  },
  computed: {
    from() {
      return this.now - this.span;
    },
    drawn() {
      void this.beat;
      return this.cards.map((card) => ({ ...card, ...this.drawing(card, this.series[card.key] ?? []) }));
    },
  },
  methods: {
    tell(now, span, gone, series) {
      for (const key of gone) delete this.series[key];
      for (const [key, points] of Object.entries(series)) {
        const known = (this.series[key] ??= []);
        known.push(...points);
        known.splice(0, known.length - KEPT);
      }
      this.now = now;
      this.span = span;
      this.beat += 1;
    },
    drawing(card, points) {
      const first = points.findLastIndex((one) => one[0] <= this.from);
      const seen = points.slice(Math.max(0, first));
      const most = Math.max(1, ...seen.map((one) => Math.max(one[1], one[2], one[3])));
      const unit = this.large ? nice(Math.max(1, most / 3)) : most;
      const top = Math.ceil(most / unit) * unit;
      const y = (value) => HEIGHT - (HEIGHT * value) / (1.06 * top);
      const x = (at) => Math.max(0, Math.min(WIDTH, ((at - this.from) * WIDTH) / this.span));
      const lines = [];
      for (let value = this.large ? 0 : top; value <= top; value += unit) lines.push({ value, y: y(value) });
      const at = Math.max(this.from, Math.min(this.now, this.cursors[card.key] ?? this.now));
      const told = seen.findLast((one) => one[0] <= at);
      const [by, why] = card.key in this.cursors ? [told?.[4], told?.[5] + (told?.[6] ? ` (limited: ${told[6]})` : "")] : [card.by?.text, card.why];
      const clock = (moment, seconds) =>
        new Date(moment * 1000).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", ...(seconds ? { second: "2-digit" } : {}) });
      return {
        lines, count: seen.length, wanted: this.steps(seen, 1, x, y), ready: this.steps(seen, 2, x, y), busy: this.steps(seen, 3, x, y),
        times: this.large ? this.times(x, clock) : [],
        cursor: this.large && card.key in this.cursors ? { x: x(at) } : null,
        chosenAt: at, told, decided: by ?? "", reason: why, when: clock(at, true),
        read: told ? `${clock(at, true)}: ${told[1]} wanted, ${told[2]} ready, ${told[3]} busy. ${by ?? ""} ${why}` : "nothing known",
      };
    },
    steps(points, which, x, y) {
      // the line of steps, and the area below it
      if (!points.length) return ["", ""];
      const began = x(points[0][0]).toFixed(1);
      let value = points[0][which];
      let path = `${began} ${y(value).toFixed(1)}`;
      for (const one of points) {
        if (one[which] === value) continue;
        value = one[which];
        path += `H${x(one[0]).toFixed(1)}V${y(value).toFixed(1)}`;
      }
      path += `H${WIDTH}`;
      return [`M${path}`, `M${began} ${HEIGHT}L${path}V${HEIGHT}Z`];
    },
    times(x, clock) {
      const every = TICKS[this.span] ?? this.span / 5;
      const found = [];
      for (let at = Math.ceil(this.from / every) * every; at <= this.now; at += every) found.push({ at, x: x(at), text: clock(at, false) });
      return found;
    },
    set(card, at) {
      if (at === null || at >= this.now) delete this.cursors[card.key];
      else this.cursors[card.key] = at;
    },
    point(card, event) {
      const box = event.currentTarget.getBoundingClientRect();
      this.set(card, this.from + (this.span * (event.clientX - box.left)) / box.width);
    },
    leave(card, event) {
      if (event.pointerType === "mouse") this.set(card, null);
    },
    slide(card, event) {
      this.set(card, this.from + Number(event.target.value));
    },
    step(card, event) {
      const times = (this.series[card.key] ?? []).map((one) => one[0]).filter((at) => at > this.from);
      const at = this.cursors[card.key] ?? this.now;
      const near = 0.005;
      const to = {
        ArrowLeft: () => times.findLast((one) => one < at - near) ?? at, ArrowRight: () => times.find((one) => one > at + near) ?? null,
        Home: () => times[0] ?? at, End: () => null,
      }[event.key];
      if (!to) return;
      event.preventDefault();
      this.set(card, to());
    },
  },
};
