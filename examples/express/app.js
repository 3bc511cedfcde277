// Express: says what it subscribes to, takes events, answers calls.
'use strict';

const express = require('express');

const app = express();
const port = Number(process.env.APP_PORT ?? 3000);
let last = null;

// An event is application/cloudevents+json, which Express does not take for JSON by itself.
app.use(express.json({ type: ['application/json', 'application/*+json'] }));

app.get('/dapr/subscribe', (request, response) => {
  response.json([{ pubsubname: 'pubsub', topic: 'orders', route: '/orders' }]);
});

app.post('/orders', (request, response) => {
  const { data } = request.body;
  if (data?.orderId === undefined) {
    console.log('Dropped an event that is no order');
    response.json({ status: 'DROP' });
    return;
  }
  last = data;
  console.log(`Got order ${last.orderId}`);
  response.json({ status: 'SUCCESS' });
});

app.get('/last', (request, response) => {
  response.json(last);
});

app.listen(port, '127.0.0.1', () => console.log(`Express listening on port ${port}`));
