// Replaces a section of the page when the node says that it changed, and lets the ages run on in between.
'use strict';

const live = document.getElementById('live');
// A node's clock may be off; what counts is how much time went by since the page was made.
const skew = Date.parse(document.body.dataset.now) - Date.now();

function two(first, firstUnit, second, secondUnit) {
  return first + firstUnit + (second ? second + secondUnit : '');
}

// By the same table as the server.
function span(seconds) {
  const minutes = Math.floor(seconds / 60), hours = Math.floor(seconds / 3600), days = Math.floor(seconds / 86400);
  if (seconds <= 0) return '0s';
  if (seconds < 120) return seconds + 's';
  if (seconds < 600) return two(minutes, 'm', seconds % 60, 's');
  if (seconds < 10800) return minutes + 'm';
  if (seconds < 28800) return two(hours, 'h', minutes % 60, 'm');
  if (seconds < 172800) return hours + 'h';
  if (seconds < 691200) return two(days, 'd', hours % 24, 'h');
  return days + 'd';
}

function ages() {
  const now = Date.now() + skew;
  for (const time of document.querySelectorAll('time[datetime]')) {
    const then = Date.parse(time.dateTime);
    if (!Number.isNaN(then)) time.textContent = span(Math.floor((now - then) / 1000));
  }
}

function say(state, text) {
  if (live.className !== state) {
    live.className = state;
    live.textContent = text;
  }
}

function listen() {
  const source = new EventSource('/events');
  source.onopen = () => say('on', 'live');
  source.onerror = () => {
    if (source.readyState === EventSource.CLOSED) {
      say('off', 'not live; trying again');
      setTimeout(listen, 30000);
    } else {
      say('off', 'no connection to this node');
    }
  };
  for (const id of ['headline', 'nodes', 'pods', 'services', 'raft', 'events']) {
    source.addEventListener(id, (event) => {
      // The server has escaped whatever came from the cluster, and the page's policy allows no inline script.
      document.getElementById(id).innerHTML = event.data;
      ages();
    });
  }
}

setInterval(ages, 1000);
listen();
