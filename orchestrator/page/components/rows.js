// A table: rows keyed, so that focus stays where it is while rows come and go; on a narrow screen each row is a block.
// Roles are named because a table shown as blocks loses its own.
export default {
  template: `
    <table class="rows" role="table">
      <caption class="unseen">{{ caption }}</caption>
      <thead role="rowgroup">
        <tr role="row">
          <th v-for="one in columns" :key="one.title" role="columnheader" scope="col" :class="one.kind">{{ one.title }}</th>
        </tr>
      </thead>
      <tbody role="rowgroup">
        <tr v-for="row in rows" :key="row.key" role="row" :class="{ chosen: row.chosen }" :data-key="row.key">
          <component
            v-for="(cell, place) in row.cells"
            :key="place"
            :is="place === 0 ? 'th' : 'td'"
            :role="place === 0 ? 'rowheader' : 'cell'"
            :scope="place === 0 ? 'row' : null"
            :class="[columns[place].kind, { none: empty(cell) }]"
            :data-label="columns[place].title"
          >
            <template v-if="typeof cell === 'string'">{{ cell }}</template>
            <div v-else class="cell" :style="cell.depth ? { paddingLeft: cell.depth * 0.9 + 'rem' } : null">
              <span v-if="cell.track" class="track" aria-hidden="true">
                <span
                  v-for="(piece, which) in cell.track"
                  :key="which"
                  :class="['piece', 'tone-' + piece.tone]"
                  :style="{ left: piece.left + '%', width: piece.width + '%' }"
                  :title="piece.title"
                ></span>
              </span>
              <span v-if="cell.mark" class="mark">
                <span :class="['sign', 'tone-' + cell.mark.tone]" aria-hidden="true">{{ cell.mark.sign }}</span>
                <span class="state">{{ cell.text }}</span>
              </span>
              <button v-else-if="cell.choose" type="button" class="choose" :aria-current="row.chosen && place === 0 ? 'true' : null"
                @click="$emit('choose', cell.choose)">{{ cell.text }}</button>
              <span v-else-if="cell.text" :class="{ said: cell.track }">{{ cell.text }}</span>
              <time v-if="cell.at" :datetime="new Date(cell.at * 1000).toISOString()" :title="new Date(cell.at * 1000).toString()"
                :class="{ sub: cell.text }">{{ moment(cell.at) }}</time>
              <span v-if="cell.sub" class="sub">{{ cell.sub }}</span>
            </div>
          </component>
        </tr>
      </tbody>
    </table>`,
  props: { caption: String, columns: Array, rows: Array },
  emits: ["choose"],
  methods: {
    empty: (cell) => cell === "" || (typeof cell === "object" && !cell.text && !cell.at && !cell.track),
    moment(at) {
      const then = new Date(at * 1000);
      const time = then.toLocaleTimeString("en-GB");
      return then.toDateString() === new Date().toDateString() ? time : `${then.toLocaleDateString("en-CA")} ${time}`;
    },
  },
};
