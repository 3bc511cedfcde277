// Asks the application `callee` for squares, one a second; it knows its name and nothing else of it.
'use strict';

const gateway = `http://127.0.0.1:${process.env.DAPR_HTTP_PORT ?? 3500}`;
let number = 1;

async function ask() {
  try {
    const answer = await fetch(`${gateway}/v1.0/invoke/callee/method/square?of=${number}`);
    const text = await answer.text();
    console.log(answer.ok ? `${number} squared is ${text}` : `${answer.status}: ${text}`);
    if (answer.ok) number += 1;
  } catch (error) {
    console.log(`no gateway: ${error.message}`);
  }
}

setInterval(ask, 1000);
